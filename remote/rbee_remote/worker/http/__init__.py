"""The routes of a worker, and the APIs that clients know.

`app.make_app` is what `main` serves; it uses `service.Service` for everything that a route does.
"""
