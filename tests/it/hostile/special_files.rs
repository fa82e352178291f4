//! Devices and FIFOs where a file is expected.
