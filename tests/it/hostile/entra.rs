//! Whoever wants the token of an Azure identity.
