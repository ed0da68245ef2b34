"""How every API of a worker answers: a job's requests go in, and their events come back in the API's own form."""
