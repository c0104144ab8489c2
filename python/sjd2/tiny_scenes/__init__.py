"""TinyScenes: the small text-to-image model that ships with the package, with its data and its training recipe."""
