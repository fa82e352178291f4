//! Malformed request heads from clients.
