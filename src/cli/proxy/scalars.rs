//! Scalars of the configuration file, in all forms in which YAML parsers return them.
//!
//! YAML 1.1 parses `off`, `on`, `no` and `yes` as booleans, and YAML 1.2 as text. Programs that generate YAML, such as Helm,
//! write booleans instead, and write some integers as floats. <https://yaml.org/type/bool.html>

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::config::AccessLogFormat;
use crate::mirror::schedule;

/// A scalar as text. All forms of a boolean become `on` or `off`.
fn scalar<'de, D: Deserializer<'de>>(deserializer: D, expected: &'static str) -> Result<String, D::Error> {
    struct ScalarVisitor(&'static str);
    impl Visitor<'_> for ScalarVisitor {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_bool<E>(self, value: bool) -> Result<String, E> {
            Ok(if value { "on" } else { "off" }.to_owned())
        }

        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            // A quoted word has the same meaning.
            Ok(match text {
                "yes" | "true" => "on".to_owned(),
                "no" | "false" => "off".to_owned(),
                text => text.to_owned(),
            })
        }

        fn visit_u64<E>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }

        fn visit_i64<E>(self, number: i64) -> Result<String, E> {
            Ok(number.to_string())
        }

        fn visit_f64<E>(self, number: f64) -> Result<String, E> {
            // `1e+09` prints as 1000000000.
            Ok(number.to_string())
        }
    }
    deserializer.deserialize_any(ScalarVisitor(expected))
}

/// `50GiB`, or a number of bytes. Some keys also accept `off` or `on`.
#[derive(Clone)]
pub(super) struct Size(pub(super) String);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, "a size such as 50GiB").map(Self)
    }
}

/// A number of seconds, or a duration such as `5m`.
#[derive(Clone, Copy)]
pub(super) struct Seconds(pub(super) Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = scalar(deserializer, "a number of seconds, or a duration such as 5m")?;
        match text.parse() {
            Ok(seconds) => Ok(Self(Duration::from_secs(seconds))),
            Err(_) => schedule::parse_duration(&text).map(Self).map_err(de::Error::custom),
        }
    }
}

impl<'de> Deserialize<'de> for AccessLogFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match scalar(deserializer, "text, json or off")?.as_str() {
            "off" => Ok(Self::Off),
            "text" | "on" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(de::Error::unknown_variant(other, &["off", "text", "json"])),
        }
    }
}
