//! What registries answer, and what a user is told of it.

use serde_json::{Value, json};

use crate::support::{
    FakeRegistry, FakeResponse, Fault, Front, Image, Registry, Rule, Run, TempDir, Tool, layout, transload,
};

/// Token endpoints write the token into either field, and lifetimes as they like.
#[test]
fn token_answers_of_every_form_are_taken() {
    let image = Image::single(581, &[900]);
    for answer in [
        r#"{"token":"","access_token":"t"}"#,
        r#"{"token":null,"access_token":"t","expires_in":"3600"}"#,
        r#"{"access_token":"","token":"t","expires_in":299.9}"#,
        r#"{"token":"t","expires_in":null,"issued_at":null,"refresh_token":""}"#,
        r#"{"token":"t","expires_in":-1}"#,
        r#"{"token":"t","expires_in":"soon"}"#,
        r#"{"token":"t","expires_in":{}}"#,
    ] {
        let (digest, bytes, media_type) =
            (image.digest().to_owned(), image.bytes().to_vec(), image.media_type().to_owned());
        let registry = FakeRegistry::start(move |asked| match asked.authorization.as_str() {
            _ if asked.target.starts_with("/token") => FakeResponse::new(200, answer),
            "Bearer t" => {
                FakeResponse::new(200, &bytes).with("content-type", &media_type).with("docker-content-digest", &digest)
            }
            _ => {
                let challenge = format!("Bearer realm=\"http://{}/token\",service=\"x\"", asked.host);
                FakeResponse::error(401, "UNAUTHORIZED", "no").with("www-authenticate", &challenge)
            }
        });
        transload(&["inspect", &format!("{}/app:v1", registry.addr())]).ok();
        assert_eq!(registry.seen().iter().filter(|asked| asked.target.starts_with("/token")).count(), 1, "{answer}");
    }
}

/// The token endpoint says why it gives no token.
#[test]
fn the_reason_of_a_token_endpoint_is_shown() {
    for (body, says) in [
        (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
        (r#"{"error":"invalid_grant","error_description":"the account is disabled"}"#, "the account is disabled"),
        (r#"{"errors":[{"code":"DENIED","message":"too many failed logins"}]}"#, "DENIED: too many failed logins"),
    ] {
        let registry = FakeRegistry::start(move |asked| {
            if asked.target.starts_with("/token") {
                return FakeResponse::new(403, body);
            }
            let challenge = format!("Bearer realm=\"http://{}/token\",service=\"x\"", asked.host);
            FakeResponse::error(401, "UNAUTHORIZED", "no").with("www-authenticate", &challenge)
        });
        let run = transload(&["inspect", &format!("{}/app:v1", registry.addr())]).exits(1);
        assert!(run.stderr.contains("the token endpoint answered 403") && run.stderr.contains(says), "{}", run.stderr);
    }
}

/// Copies an image to a registry that answers the push of its manifest in this way.
fn pushed(status: u16, body: &str) -> Run {
    let (from, to) = (Registry::start(), Registry::start());
    Image::single(582, &[900]).push(from.addr(), "app", "v1");
    let content_type = "application/json".to_owned();
    let fault = Fault::Status { code: status, retry_after: None, content_type, body: body.to_owned() };
    let front = Front::before(to.addr()).rule(Rule::on("PUT", "/manifests/", fault)).start();
    transload(&["copy", &format!("{}/app:v1", from.addr()), &format!("{}/app:v1", front.addr())]).exits(1)
}

/// Quay's reason is in `detail.message`, distribution's digest in `detail`, others write problem documents (RFC 9457) or
/// several errors, of which the first says nothing.
#[test]
fn the_reason_is_shown_wherever_a_registry_puts_it() {
    let one = |code: &str, message: &str, detail: Value| {
        json!({"errors": [{"code": code, "message": message, "detail": detail}]}).to_string()
    };
    for (status, body, says) in [
        (400, one("MANIFEST_INVALID", "manifest invalid", json!({"message": "it does not match the schema"})), "it does not match the schema"),
        (404, one("MANIFEST_BLOB_UNKNOWN", "blob unknown to registry", json!("sha256:52bf043025")), "sha256:52bf043025"),
        (400, one("DENIED", "no", json!([{"Action": "push", "Name": "app"}])), "Action push, Name app"),
        (400, json!({"errors": [{"code": "UNKNOWN", "message": "unknown error"}, {"code": "TAG_INVALID", "message": "immutable"}]}).to_string(), "TAG_INVALID: immutable"),
        (400, json!({"title": "Bad", "detail": "immutable tag", "status": 400}).to_string(), "immutable tag"),
        (403, json!({"message": "the project is archived"}).to_string(), "the project is archived"),
        (400, json!({"error": "the quota is used up"}).to_string(), "the quota is used up"),
    ] {
        let run = pushed(status, &body);
        assert!(run.stderr.contains(says), "{body}: {}", run.stderr);
    }
}

/// An error document may be long and hold control characters: what is shown is bounded and printable.
#[test]
fn an_error_document_cannot_flood_or_forge_the_terminal() {
    let errors: Vec<Value> = (0..50)
        .map(|nth| json!({"code": "X", "message": format!("\u{1b}[2J{nth}\nerror: forged {}", "y".repeat(900))}))
        .collect();
    let run = pushed(400, &json!({ "errors": errors }).to_string());
    assert!(run.stderr.contains("more errors") && !run.stderr.contains('\u{1b}'), "{}", run.stderr);
    assert!(run.stderr.len() < 4000 && !run.stderr.contains("\nerror: forged"), "{}", run.stderr);
}

/// docker-registry refuses layers with `urls` by 500 and errors that do not name them: these are its answers where the
/// layer is there and where it is not. It is about the image, not a fault: it is tried twice, and the hint says what to
/// configure.
#[test]
fn a_registry_that_refuses_foreign_layers_is_explained() {
    let unknown = json!({"code": "UNKNOWN", "message": "unknown error", "detail": {}});
    let absent = json!({"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown to registry", "detail": "sha256:1"});
    for errors in [vec![unknown.clone(), unknown.clone()], vec![unknown, absent]] {
        let (directory, to) = (TempDir::new(), Registry::start());
        let source = layout::write(&directory, "lay", &Image::foreign(583), "v1");
        let body = json!({ "errors": errors }).to_string();
        let fault = Fault::Status { code: 500, retry_after: None, content_type: "application/json".to_owned(), body };
        let front = Front::before(to.addr()).rule(Rule::on("PUT", "/manifests/", fault)).start();
        let goal = format!("{}/win:v1", front.addr());
        let run = transload(&["copy", &format!("oci:{}", source.display()), &goal]).exits(1);
        assert!(run.stderr.contains("validation.manifests.urls.allow"), "{}", run.stderr);
        assert_eq!(front.count("PUT", "/manifests/"), 2, "{}", run.stderr);
    }
}

/// The same answer for an image without such layers is a fault of the registry, and says nothing of them.
#[test]
fn an_unknown_error_about_another_image_is_no_foreign_layer() {
    let run = pushed(400, r#"{"errors":[{"code":"UNKNOWN","message":"unknown error"}]}"#);
    assert!(!run.stderr.contains("foreign"), "{}", run.stderr);
}

/// A page that is longer than what is read of it still shows its title.
#[test]
fn the_title_of_a_long_page_is_shown() {
    let run = pushed(400, &format!("<html><head><title>Blocked by policy</title></head>{}", "x".repeat(200_000)));
    assert!(run.stderr.contains("answered 400: Blocked by policy"), "{}", run.stderr);
}

const ADMIN: (&str, &str) = ("TRANSLOAD_AUTH_MYREGISTRY_AZURECR_IO", "admin:admin-secret");

/// Runs a command against a look-alike of ACR before `registry`, which answers matching requests in this way.
fn acr(registry: &Registry, method: &str, path: &str, status: u16, body: &str) -> Front {
    let content_type = "application/json".to_owned();
    let fault = Fault::Status { code: status, retry_after: None, content_type, body: body.to_owned() };
    Front::before(registry.addr()).acr(|_| {}).tls().rule(Rule::on(method, path, fault)).start()
}

fn denied(message: &str) -> String {
    json!({"errors": [{"code": "DENIED", "message": message}]}).to_string()
}

fn copy_to(front: &Front) -> Run {
    let from = Registry::start();
    Image::single(584, &[900]).push(from.addr(), "app", "v1");
    let to = format!("{}/app:v1", front.host());
    let tool = Tool::transload().args(&["copy", &format!("{}/app:v1", from.addr()), &to]).args(&front.flags());
    tool.env(ADMIN.0, ADMIN.1).run().exits(1)
}

/// An image, or its repository, is locked in ACR (Microsoft Learn, "Lock a container image"): 405, or "disallowed".
#[test]
fn a_locked_image_in_acr_says_how_to_unlock_it() {
    let text = "The operation is disallowed on this registry, repository or image. View troubleshooting steps at \
                https://aka.ms/acr/faq/#why-does-my-pull-or-push-request-fail-with-disallowed-operation";
    for (status, body) in [(405, denied(text)), (405, String::new()), (403, denied(text))] {
        let registry = Registry::start();
        let run = copy_to(&acr(&registry, "PUT", "/manifests/", status, &body));
        for part in ["is locked", "az acr repository update --name myregistry --image app:TAG --write-enabled true"] {
            assert!(run.stderr.contains(part), "{status}: {}", run.stderr);
        }
    }
}

/// ACR's firewall does not know this machine's address, at the registry or already at the token endpoint.
#[test]
fn a_refusal_of_acrs_firewall_names_the_address_to_allow() {
    let body =
        denied("client with IP '20.1.2.3' is not allowed access. Refer https://aka.ms/acr/firewall to grant access.");
    for (method, path) in [("*", "/v2/app/"), ("*", "/oauth2/token"), ("POST", "/blobs/uploads/")] {
        let registry = Registry::start();
        let run = copy_to(&acr(&registry, method, path, 403, &body));
        let part = "az acr network-rule add --name myregistry --ip-address 20.1.2.3";
        assert!(run.stderr.contains(part), "{path}: {}", run.stderr);
        assert!(!run.stderr.contains("AcrPush"), "{path}: {}", run.stderr);
    }
}

/// A repository that a cache rule fills takes no pushes.
#[test]
fn a_push_to_the_target_of_a_cache_rule_says_so() {
    let body = denied("push to repository 'app' is not allowed, since it is the target of cache rule 'hub'");
    let registry = Registry::start();
    let run = copy_to(&acr(&registry, "POST", "/blobs/uploads/", 403, &body));
    assert!(
        run.stderr.contains("app is the target of a cache rule")
            && run.stderr.contains("az acr cache list --registry myregistry"),
        "{}",
        run.stderr
    );
}

/// Credentials from before a registry was switched to ABAC mode answer 401, although the roles are right.
#[test]
fn a_401_of_acr_says_that_the_mode_may_have_changed() {
    let body = json!({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}).to_string();
    for (method, path) in [("POST", "/blobs/uploads/"), ("*", "/oauth2/token")] {
        let registry = Registry::start();
        let run = copy_to(&acr(&registry, method, path, 401, &body));
        assert!(
            run.stderr.contains("ABAC mode") && run.stderr.contains("az acr login --name myregistry"),
            "{path}: {}",
            run.stderr
        );
    }
}

/// The same words of another registry mean nothing of this: no hint tells to run `az`.
#[test]
fn other_registries_get_no_hint_about_azure() {
    for text in ["The operation is disallowed", "client with IP '20.1.2.3' is not allowed access", "cache rule 'hub'"] {
        for status in [401, 403, 405] {
            let run = pushed(status, &denied(text));
            assert!(!run.stderr.contains("az acr"), "{status}: {}", run.stderr);
        }
    }
}

/// A delete of a locked tag or manifest says that it is locked, not that the registry allows no deletes or that a right
/// is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_delete_of_a_locked_tag_in_acr_says_how_to_unlock_it() {
    use transload::credentials::{Credential, Credentials};
    let registry = Registry::start();
    let front = acr(&registry, "DELETE", "", 405, &denied("The operation is disallowed"));
    let ca = front.ca_file().expect("TLS");
    let mut trust = transload::registry::Trust::default();
    trust.add_file(ca.as_ref(), &std::fs::read(&ca).expect("a certificate")).expect("PEM");
    let resolve = std::collections::HashMap::from([(front.host().to_owned(), front.addr())]);
    let credentials = Credentials::fixed(front.host(), Credential::basic("admin", "admin-secret")).expect("a registry");
    let options = transload::registry::Options {
        credentials,
        trust: std::sync::Arc::new(trust),
        resolve: std::sync::Arc::new(resolve),
        ..transload::registry::Options::default()
    };
    let registries = transload::registry::Registries::new(options);
    let repository = format!("{}/app", front.host()).parse().expect("a repository");
    let repository = registries.repository(&repository).expect("a repository");
    let tag = repository.delete_tag(&"v1".parse().expect("a tag")).await.expect_err("it is locked");
    let digest = Image::single(585, &[900]).digest().parse().expect("a digest");
    let manifest = repository.delete_manifest(&digest).await.expect_err("it is locked");
    for error in [tag, manifest] {
        let hint = error.hint_text().unwrap_or_default();
        assert!(hint.contains("is locked") && hint.contains("--delete-enabled true"), "{error} {hint}");
    }
}
