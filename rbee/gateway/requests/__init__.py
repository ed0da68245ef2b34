"""A client's request, from the app that lets it in to its answer. Begin with `app` and `proxy`."""
