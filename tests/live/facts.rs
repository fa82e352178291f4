//! The uncertain facts of `docs/protocol.md`, and the check of each.

use crate::flow::guarded;
use crate::live::{Live, Seen};
use crate::{acr, hub};

/// Looks at a service: whether the fact holds, and what was seen.
pub type Check = fn(&Live) -> (Seen, String);

/// The id of each fact, and its check. Ids are those of the page.
pub const CHECKS: [(&str, Check); 18] = [
    ("hub-token-lifetime", hub::token_lifetime),
    ("hub-head-is-free", hub::head_is_free),
    ("hub-index-is-a-pull", hub::index_is_a_pull),
    ("hub-link-lifetime", hub::link_lifetime),
    ("hub-storage-authorization", hub::storage_authorization),
    ("hub-referrers", hub::referrers),
    ("acr-token-lifetime", acr::token_lifetime),
    ("acr-basic", acr::basic),
    ("acr-name-unknown", acr::name_unknown),
    ("acr-upload-location", acr::upload_location),
    ("acr-streamed-chunk", acr::streamed_chunk),
    ("acr-content-range", acr::content_range),
    ("acr-repeated-chunk", acr::repeated_chunk),
    ("acr-body-limit", acr::body_limit),
    ("acr-mount", acr::mount),
    ("acr-blob-link", acr::blob_link),
    ("acr-storage-authorization", acr::storage_authorization),
    ("acr-referrers", acr::referrers),
];

/// Runs all checks; returns what failed.
pub fn run(live: &Live) -> Vec<String> {
    let mut failed = Vec::new();
    for (id, check) in CHECKS {
        failed.extend(guarded(live, id, || {
            let (seen, what) = match id.starts_with("hub-") && !live.uses_hub() {
                true => (Seen::Unknown, "TRANSLOAD_LIVE_HUB is not set".to_owned()),
                false => check(live),
            };
            live.saw(id, seen, &what);
        }));
    }
    failed
}

/// Whether it is as the page says.
pub fn verdict(as_written: bool) -> Seen {
    if as_written { Seen::AsWritten } else { Seen::Different }
}

/// For how many seconds from now on a signed link is valid, by the parameters that storage services use.
pub fn link_seconds(link: &str) -> Option<i64> {
    let now = jiff::Timestamp::now();
    let query = link.split_once('?')?.1;
    let parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
    parameters.into_iter().find_map(|(name, value)| match name {
        // Amazon S3 and R2: seconds.
        "X-Amz-Expires" => value.parse().ok(),
        // Cloudflare: the time, and a signature.
        "verify" => Some(value.split('-').next()?.parse::<i64>().ok()? - now.as_second()),
        // CloudFront, Google: the time in seconds. Azure: ISO 8601.
        "Expires" | "expires" | "se" => match value.parse::<i64>() {
            Ok(second) => Some(second - now.as_second()),
            Err(_) => Some(value.replace("%3A", ":").parse::<jiff::Timestamp>().ok()?.as_second() - now.as_second()),
        },
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The ids of all markers `**(uncertain: ID)**`, in the order of the page.
    fn marked(page: &str) -> Vec<&str> {
        let markers = page.split("**(uncertain").skip(1).map(|rest| rest.split(")**").next().unwrap_or_default());
        markers.map(|marker| marker.strip_prefix(": ").unwrap_or_else(|| panic!("no id in {marker:?}"))).collect()
    }

    #[test]
    fn each_uncertain_fact_of_the_page_has_its_check_and_the_reverse() {
        let marked = marked(include_str!("../../docs/protocol.md"));
        let unique: BTreeSet<&str> = marked.iter().copied().collect();
        assert_eq!(marked.len(), unique.len(), "each id is marked once: {marked:?}");
        assert_eq!(unique, CHECKS.iter().map(|(id, _)| *id).collect());
    }

    #[test]
    fn a_marker_without_an_id_is_found() {
        assert_eq!(marked("a **(uncertain: x-y)** b **(uncertain: z)**"), ["x-y", "z"]);
        for wrong in ["**(uncertain)**", "**(uncertain whether)**"] {
            assert!(std::panic::catch_unwind(|| marked(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn lifetimes_of_links() {
        let later = jiff::Timestamp::now().as_second() + 600;
        let iso = jiff::Timestamp::from_second(later).expect("a time").to_string().replace(':', "%3A");
        for query in [
            "X-Amz-Date=20260101T000000Z&X-Amz-Expires=600&X-Amz-Signature=ab".to_owned(),
            format!("verify={later}-abcdef%2Bgh%3D"),
            format!("Expires={later}&Signature=ab&Key-Pair-Id=c"),
            format!("sv=2018-03-28&sr=b&se={iso}&sig=ab"),
            format!("sp=r&se={later}&sig=ab"),
        ] {
            let seconds = link_seconds(&format!("https://cdn.example/a?{query}")).expect("a lifetime");
            assert!((599..=600).contains(&seconds), "{query}: {seconds}");
        }
        assert_eq!(link_seconds("https://cdn.example/a?b=c"), None);
        assert_eq!(link_seconds("https://cdn.example/a"), None);
    }
}
