//! `transload proxy --config`: files that change, without any signal.

use super::proxy_blobs::wait_until;
use super::proxy_config::{Authority, HTTP, LIBRARY, TEAM, World, addr, for_clients_of, pull, user};
use super::support::{TempDir, Tool, http};

#[test]
fn a_changed_file_is_taken_without_a_signal() {
    let world = World::new(&[3000]);
    let proxy = world.start(HTTP, "    deny: [\"team/**\"]\n");
    let at = addr(&proxy, "http");
    http::get(at, TEAM).expect(404);
    world.write(HTTP, "    deny: [\"library/**\"]\n");
    wait_until("it's read", || http::get(at, TEAM).status == 200);
    http::get(at, LIBRARY).expect(404);
}

#[test]
fn changed_users_are_taken_without_a_signal() {
    let world = World::new(&[3000]);
    world.dir.write("users", user("anna", "right"));
    let proxy = world.start("  - http: 127.0.0.1:0\n    users-file: users", "");
    let at = addr(&proxy, "http");
    let asks = |method: &str, who: &str| {
        use base64::Engine as _;
        let value = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(who));
        http::send(at, method, LIBRARY, &[("authorization", &value)], &[])
    };
    asks("GET", "anna:right").expect(200);
    let refused = asks("HEAD", "bert:other").expect(401);
    assert_eq!(refused.header("www-authenticate"), Some("Basic realm=\"transload\""));
    world.dir.write("users", user("bert", "other"));
    wait_until("it's read", || asks("GET", "bert:other").status == 200);
    asks("GET", "anna:right").expect(401);
}

#[test]
fn a_changed_authority_of_clients_is_taken_without_a_signal() {
    let world = World::new(&[3000]);
    let (authority, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let proxy = for_clients_of(&world, &authority, &clients);
    let at = addr(&proxy, "https");
    let of = |issuer: &Authority| {
        let certs = TempDir::new();
        let (certificate, key) = issuer.issue();
        certs.write("ca.crt", &authority.1);
        certs.write("client.cert", certificate);
        certs.write("client.key", key);
        certs
    };
    let (client, other) = (of(&clients), of(&others));
    pull(at, &client).ok();
    assert_ne!(pull(at, &other).code, 0, "with a stranger's certificate");
    world.dir.write("clients.crt", &others.1);
    wait_until("it's read", || pull(at, &other).code == 0);
    assert_ne!(pull(at, &client).code, 0, "with that of an authority that is none any more");
}

/// One line a request, in a fixed order, quoted: also for what never came as far as to an upstream.
#[test]
fn the_access_log_as_text() {
    let world = World::new(&[3000]);
    let process = Tool::transload()
        .args(&["proxy", "--listen", "127.0.0.1:0", "--cache", "cache", "--keep-free", "0", "--access-log", "text"])
        .args(&["--upstream", &format!("docker.io={}", world.front.addr())])
        .spawn();
    let at = addr(&process, "http");
    let size = world.image.bytes().len();
    let agent = ("user-agent", "tool \"1\"");
    for (method, path, status) in [
        ("GET", LIBRARY, 200),
        ("HEAD", LIBRARY, 200),
        ("GET", "/v2/made-up.io/a/manifests/v1?ns=made-up.io", 404),
        ("PUT", "/v2/library/app/manifests/v2", 405),
    ] {
        http::send(at, method, path, &[agent], &[]).expect(status);
    }
    process.terminate();
    let said = process.finish(super::support::process::RUN_TIMEOUT).exits(0).stdout;
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.splitn(12, ' ').collect()).collect();
    let told: Vec<String> = lines
        .iter()
        .map(|line| {
            assert!(line.len() == 12 && line[0].ends_with('Z') && line[1].starts_with("127.0.0.1:"), "{line:?}");
            assert!(line[8].parse::<u64>().is_ok() && line[11] == r#""tool \"1\"""#, "{line:?}");
            [&line[2..8], &line[9..11]].concat().join(" ")
        })
        .collect();
    assert_eq!(told[0], format!("- GET {LIBRARY} - 200 {size} miss complete"));
    assert_eq!(told[1], format!("- HEAD {LIBRARY} - 200 0 hit complete"));
    let start = "- GET /v2/made-up.io/a/manifests/v1 made-up.io 404 ";
    assert!(told[2].starts_with(start) && told[2].ends_with(" - complete"), "{told:?}");
    assert!(told[3].starts_with("- PUT /v2/library/app/manifests/v2 - 405 "), "{told:?}");
    assert_eq!(told.len(), 4);
}
