//! Reads the fields of a certificate (RFC 5280, section 4.1) that errors name: its validity and issuer.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// The first and the last valid second, since the epoch.
    pub(super) valid: (i64, i64),
    /// The issuer's common name, or its organization.
    pub(super) issuer: Option<String>,
    /// The issuer and the subject have the same name.
    pub(super) self_issued: bool,
}

impl Facts {
    /// Parses a certificate; `None` if it is malformed.
    pub(super) fn read(certificate: &[u8]) -> Option<Self> {
        let mut input = certificate;
        let mut outer = tagged(&mut input, SEQUENCE)?;
        let mut fields = tagged(&mut outer, SEQUENCE)?;
        if fields.first() == Some(&VERSION) {
            element(&mut fields)?;
        }
        tagged(&mut fields, INTEGER)?;
        tagged(&mut fields, SEQUENCE)?;
        let issuer = tagged(&mut fields, SEQUENCE)?;
        let mut validity = tagged(&mut fields, SEQUENCE)?;
        let subject = tagged(&mut fields, SEQUENCE)?;
        let valid = (time(&mut validity)?, time(&mut validity)?);
        Some(Self { valid, issuer: name(issuer), self_issued: issuer == subject })
    }
}

/// The next element: its tag and its content.
fn element<'a>(input: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        // An indefinite length, which DER does not allow, or one longer than any certificate.
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *input = rest;
    Some((tag, content))
}

fn tagged<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    element(input).filter(|(found, _)| *found == tag).map(|(_, content)| content)
}

/// A time of RFC 5280, section 4.1.2.5: always in UTC, with seconds.
fn time(input: &mut &[u8]) -> Option<i64> {
    let (tag, content) = element(input)?;
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: i16 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2)?.parse::<i8>().ok();
    let date = Date::new(year, part(0)?, part(2)?).ok()?;
    let time = Time::new(part(4)?, part(6)?, part(8)?, 0).ok()?;
    Some(DateTime::from_parts(date, time).to_zoned(TimeZone::UTC).ok()?.timestamp().as_second())
}

/// The common name in a distinguished name, else the organization.
fn name(mut names: &[u8]) -> Option<String> {
    let (mut common, mut organization) = (None, None);
    while let Some(mut set) = tagged(&mut names, SET) {
        while let Some(mut pair) = tagged(&mut set, SEQUENCE) {
            let kind = tagged(&mut pair, OBJECT_IDENTIFIER)?;
            let (_, value) = element(&mut pair)?;
            let text = || Some(String::from_utf8_lossy(value).into_owned()).filter(|text| !text.trim().is_empty());
            match kind {
                COMMON_NAME => common = text(),
                ORGANIZATION => organization = text(),
                _ => {}
            }
        }
    }
    common.or(organization)
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The context-specific tag 0.
const VERSION: u8 = 0xa0;
/// `id-at-commonName` and `id-at-organizationName` (RFC 5280, appendix A.1).
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};

    fn certificate() -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["r.test".to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, "Example CA");
        params.not_before = date_time_ymd(2021, 1, 2);
        params.not_after = date_time_ymd(2150, 12, 31);
        params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").der().to_vec()
    }

    #[test]
    fn the_fields_of_a_certificate_are_read() {
        let facts = Facts::read(&certificate()).expect("a certificate");
        assert_eq!(facts.issuer.as_deref(), Some("Example CA"));
        assert!(facts.self_issued);
        let day = |text: &str| text.parse::<jiff::Timestamp>().expect("a time").as_second();
        assert_eq!(facts.valid, (day("2021-01-02T00:00:00Z"), day("2150-12-31T00:00:00Z")));
    }

    #[test]
    fn a_cut_certificate_is_none() {
        let whole = certificate();
        for length in [0, 1, 2, 10, 100, 150] {
            assert_eq!(Facts::read(&whole[..length]), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0..300_usize, byte: u8) {
            let _ = Facts::read(&bytes);
            let mut changed = certificate();
            let length = changed.len();
            changed[at % length] = byte;
            let _ = Facts::read(&changed);
        }
    }
}
