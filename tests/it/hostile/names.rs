//! Tags, names and digests from outside that become part of a URL, a path or a reference.
