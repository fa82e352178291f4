//! Numbers from outside in calculations.
