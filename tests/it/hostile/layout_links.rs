//! Links in a layout that lead out of it.
