"""Collections: restore all photos of a folder, and go on after whatever ended it."""
