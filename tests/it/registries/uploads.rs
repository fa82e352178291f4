//! Upload sessions of registries that say odd things of them.

use crate::support::{Fault, Front, Image, Registry, Rule, transload};

const MIB: usize = 1 << 20;

/// ECR's `Range` stays at the end of the first chunk (aws/containers-roadmap issue 2831), zot's is that of each chunk, and
/// others have none. They took the whole chunk, so nothing is sent twice.
#[test]
fn a_range_that_is_wrong_does_not_stop_an_upload() {
    let image = Image::single(521, &[7 * MIB / 2]);
    for range in [Some("0-1048575"), Some("0-0"), Some("0-99999999"), Some("bytes=0-524287"), Some("x"), None] {
        let (from, to) = (Registry::start(), Registry::start());
        image.push(from.addr(), "app", "v1");
        from.reset_log();
        let fault = Fault::Header("range", range.map(str::to_owned));
        // The first chunk may be answered as it is: a half of it would be a half.
        let front = Front::before(to.addr()).rule(Rule::on("PATCH", "", fault).nth(2..)).start();
        let (source, goal) = (format!("{}/app:v1", from.addr()), format!("{}/app:v1", front.addr()));
        transload(&["copy", &source, &goal, "--chunk-size", "1MiB"]).ok();
        image.assert_at(to.addr(), "app", "v1");
        assert_eq!((front.count("PATCH", ""), front.struck()), (4, 3), "{range:?}");
        assert_eq!(from.count("GET", &image.blobs[1].digest), 1, "{range:?}");
    }
}

/// A chunk breaks, and the source no longer has the blob: the upload cannot go on, and its session is deleted.
#[test]
fn a_session_is_deleted_if_the_source_cannot_be_opened_again() {
    let image = Image::single(523, &[5 * MIB / 2]);
    let layer = image.blobs[1].digest.clone();
    for (rule, state) in [
        // The session goes on, a new one is begun, and the body is redirected.
        (Rule::on("PATCH", "", Fault::ResetRequestAfter(100_000)).nth(2..=2), None),
        (Rule::on("PATCH", "", Fault::ResetRequestAfter(100_000)).nth(2..=2), Some(404)),
        (Rule::on("PATCH", "", Fault::SendOn(307, "http://127.0.0.1:9".to_owned())).nth(2..=2), None),
    ] {
        let (from, to) = (Registry::start(), Registry::start());
        image.push(from.addr(), "app", "v1");
        let gone = Rule::on("GET", &layer, Fault::status(404)).nth(2..);
        let source = Front::before(from.addr()).rule(gone).start();
        let mut front = Front::before(to.addr()).rule(rule);
        if let Some(status) = state {
            front = front.rule(Rule::on("GET", "/blobs/uploads/", Fault::status(status)));
        }
        let front = front.start();
        let (source, goal) = (format!("{}/app:v1", source.addr()), format!("{}/app:v1", front.addr()));
        transload(&["copy", &source, &goal, "--chunk-size", "1MiB"]).exits(1);
        to.assert_no_open_uploads();
        let begun = front.count("POST", "/blobs/uploads/") - 1;
        assert_eq!(front.count("DELETE", "/blobs/uploads/"), begun, "all but the config's: {:#?}", front.log());
    }
}

/// A chunk breaks, and the session's state cannot be asked: the blob is begun anew, within its budget.
#[test]
fn a_session_whose_state_cannot_be_asked_is_replaced() {
    let image = Image::single(522, &[5 * MIB / 2]);
    for status in [400, 403, 404, 405, 501] {
        let (from, to) = (Registry::start(), Registry::start());
        image.push(from.addr(), "app", "v1");
        let front = Front::before(to.addr())
            .rule(Rule::on("GET", "/blobs/uploads/", Fault::status(status)))
            .rule(Rule::on("PATCH", "", Fault::ResetRequestAfter(100_000)).nth(2..=2))
            .start();
        let (source, goal) = (format!("{}/app:v1", from.addr()), format!("{}/app:v1", front.addr()));
        transload(&["copy", &source, &goal, "--chunk-size", "1MiB"]).ok();
        image.assert_at(to.addr(), "app", "v1");
        assert_eq!(front.count("GET", "/blobs/uploads/"), 1, "{status}");
        assert!(front.struck() >= 2, "{status}: {:#?}", front.log());
        to.assert_no_open_uploads();
    }
}
