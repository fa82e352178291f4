//! Control characters from outside in terminals and logs.
