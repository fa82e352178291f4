//! Registries as they really are: methods that they do not support, redirects, odd content, and how they say no.

mod answers;
mod content;
mod methods;
mod push_tags;
mod redirects;
mod same_registry;
mod uploads;
