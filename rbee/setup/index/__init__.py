"""Indexes of prebuilt wheels: asked, and pushed to."""
