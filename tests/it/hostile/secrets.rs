//! Registries that echo secrets.
