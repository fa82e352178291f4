//! Byte ranges of requests. No I/O.

use std::ops::{Range, RangeInclusive};

/// The part of a blob that a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RequestedRange {
    /// The whole blob: 200.
    Whole,
    /// These bytes: 206.
    Part(Range<u64>),
    /// Bytes outside the blob: 416.
    Beyond,
}

/// Parses a `Range` header for content of `size` bytes (RFC 9110, 14.1-14.2).
///
/// A header that cannot be parsed, and one with several ranges, is answered with the whole, as the RFC allows.
pub(super) fn parse_range(header: Option<&str>, size: u64) -> RequestedRange {
    let Some(spec) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else {
        return RequestedRange::Whole;
    };
    let Some((first, last)) = spec.split_once('-').map(|(first, last)| (first.trim(), last.trim())) else {
        return RequestedRange::Whole;
    };
    let range = match (number(first), number(last)) {
        // The last bytes.
        (None, Some(count)) if first.is_empty() => size.saturating_sub(count)..size,
        (Some(first), None) if last.is_empty() => first..size,
        (Some(first), Some(last)) if first <= last => first..size.min(last.saturating_add(1)),
        _ => return RequestedRange::Whole,
    };
    if range.is_empty() { RequestedRange::Beyond } else { RequestedRange::Part(range) }
}

/// Parses the `Content-Range` of an uploaded chunk: `<first>-<last>` (distribution spec, "Pushing
/// a blob in chunks"). RFC 9110's own form, `bytes <first>-<last>/*`, is accepted too.
pub(super) fn parse_chunk_range(header: &str) -> Option<RangeInclusive<u64>> {
    let spec = header.trim();
    let spec = spec.strip_prefix("bytes ").or_else(|| spec.strip_prefix("bytes=")).unwrap_or(spec);
    let spec = spec.split_once('/').map_or(spec, |(range, _)| range);
    let (first, last) = spec.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    // A range of 2^64 bytes is rejected: its length must fit into a u64.
    (first <= last && last < u64::MAX).then_some(first..=last)
}

/// Parses digits only: `parse` would also accept a `+`.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_forms_of_a_range() {
        for (header, expected) in [
            ("bytes=0-", RequestedRange::Part(0..10)),
            ("bytes=3-5", RequestedRange::Part(3..6)),
            ("bytes=9-9", RequestedRange::Part(9..10)),
            ("bytes=5-99", RequestedRange::Part(5..10)),
            ("bytes=-4", RequestedRange::Part(6..10)),
            ("bytes=-99", RequestedRange::Part(0..10)),
            ("bytes=10-", RequestedRange::Beyond),
            ("bytes=-0", RequestedRange::Beyond),
            ("bytes=0-18446744073709551615", RequestedRange::Part(0..10)),
            ("bytes=5-3", RequestedRange::Whole),
            ("bytes=0-1,3-4", RequestedRange::Whole),
            ("bytes=+1-2", RequestedRange::Whole),
            ("bytes=-", RequestedRange::Whole),
            ("bytes=99999999999999999999-", RequestedRange::Whole),
            ("lines=1-2", RequestedRange::Whole),
            ("", RequestedRange::Whole),
        ] {
            assert_eq!(parse_range(Some(header), 10), expected, "{header}");
        }
        assert_eq!(parse_range(None, 10), RequestedRange::Whole);
        assert_eq!(parse_range(Some("bytes=0-"), 0), RequestedRange::Beyond);
    }

    #[test]
    fn the_forms_of_a_chunk() {
        assert_eq!(parse_chunk_range("0-9"), Some(0..=9));
        assert_eq!(parse_chunk_range("bytes 3-3/*"), Some(3..=3));
        for wrong in ["", "-", "3-", "-3", "3-2", "a-b", "+1-2", "0-18446744073709551615"] {
            assert_eq!(parse_chunk_range(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_part_is_within_the_content(header in "(bytes=)?[0-9-]{0,24}|.{0,20}", size in any::<u64>()) {
            if let RequestedRange::Part(range) = parse_range(Some(&header), size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }

        #[test]
        fn what_is_asked_is_given(first in any::<u64>(), length in 1..1000_u64, size in any::<u64>()) {
            let last = first.saturating_add(length - 1);
            let expected = if first < size { RequestedRange::Part(first..size.min(last.saturating_add(1))) } else { RequestedRange::Beyond };
            prop_assert_eq!(parse_range(Some(&format!("bytes={first}-{last}")), size), expected);
        }
    }
}
