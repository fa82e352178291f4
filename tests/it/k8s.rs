//! `transload k8s`: read back as a cluster reads it, and used as a cluster uses it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use transload::demo::persona::{Account, Grant};

use super::support::{Front, Image, Registry, Run, TempDir, Tool, transload};

const USER: &str = "0f1e2d3c-1111-2222-3333-444455556666";
/// What a shell, JSON, YAML and base64 would each like to change.
const PASSWORD: &str = "p~:\"\\'{{ x }}\u{e4}\u{1f600}%$(id) #";

fn yaml(run: Run) -> Value {
    let run = run.ok();
    serde_saphyr::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error} in {}", run.stdout))
}

/// What the kubelet finds in a Secret.
fn config(secret: &Value) -> Value {
    let data = secret["data"][".dockerconfigjson"].as_str().expect("data");
    serde_json::from_slice(&BASE64.decode(data).expect("base64")).expect("JSON")
}

fn secret(registry: &str, more: &[&str]) -> Tool {
    let args = [&["k8s", "secret", "--registry", registry, "--name", "acr"], more].concat();
    Tool::transload().args(&args)
}

#[test]
fn a_secret_holds_what_was_given() {
    let given = ["--namespace", "team-a", "--username", USER, "--password-stdin"];
    let run = secret("myregistry.azurecr.io", &given).stdin(&format!("{PASSWORD}\n")).run();
    assert!(!run.stderr.contains(PASSWORD), "{run:?}");
    let document = yaml(run);
    assert_eq!(document["apiVersion"], "v1");
    assert_eq!(document["kind"], "Secret");
    assert_eq!(document["type"], "kubernetes.io/dockerconfigjson");
    assert_eq!(document["metadata"], json!({ "name": "acr", "namespace": "team-a" }));
    let auth = BASE64.encode(format!("{USER}:{PASSWORD}"));
    let entry = json!({ "username": USER, "password": PASSWORD, "auth": auth });
    assert_eq!(config(&document), json!({ "auths": { "myregistry.azurecr.io": entry } }));

    // The same as JSON, and in kubectl's own namespace.
    let given = ["--username", USER, "--password-stdin", "--output", "json"];
    let json = secret("myregistry.azurecr.io", &given).stdin(PASSWORD).run().ok().json();
    assert_eq!(json["data"], document["data"]);
    assert_eq!(json["metadata"], json!({ "name": "acr" }));

    // Docker Hub has its old name there.
    let hub = yaml(secret("index.docker.io", &["-u", "alice", "--password-stdin"]).stdin("x").run());
    assert!(config(&hub)["auths"]["https://index.docker.io/v1/"]["auth"].is_string(), "{hub}");
}

/// A login, then the Secret of it, then a pull with nothing but the Secret.
#[test]
fn a_secret_of_the_stored_login_pulls() {
    let behind = Registry::start();
    let image = Image::tiny(1);
    image.push(behind.addr(), "library/hello-world", "latest");
    let front = Front::before(behind.addr())
        .acr(|acr| acr.accounts = vec![Account::new(USER, PASSWORD, Grant::everything())])
        .tls()
        .start();
    let home = TempDir::new();
    let run = |args: &[&str], stdin: &str| {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).chain(front.flags()).collect();
        Tool::transload().args(&args).env("DOCKER_CONFIG", &home.join("docker")).stdin(stdin).run()
    };
    let login = ["login", "myregistry.azurecr.io", "-u", USER, "--password-stdin"];
    run(&login, PASSWORD).ok();
    let stored = run(&["k8s", "secret", "--registry", "myregistry.azurecr.io", "--name", "acr"], "");
    let document = yaml(stored);
    run(&["logout", "myregistry.azurecr.io"], "").ok();
    let pull = |file: &str| {
        let args = ["inspect", "myregistry.azurecr.io/library/hello-world", "--auth-file", file];
        run(&args, "")
    };
    // As the kubelet mounts it into a pod.
    let mounted = home.write("secret/.dockerconfigjson", config(&document).to_string());
    pull(&mounted).ok();
    let other = config(&document).to_string().replace(USER, "somebody-else");
    let other = other.replace(&BASE64.encode(format!("{USER}:{PASSWORD}")), &BASE64.encode("somebody-else:x"));
    assert_ne!(pull(&home.write("other.json", other)).code, 0);
}

#[test]
fn tokens_become_passwords_where_the_registry_takes_them() {
    let home = TempDir::new();
    // `{"exp": 4102444800}`: the year 2100.
    let token = format!("e30.{}.x", BASE64.encode(r#"{"exp":4102444800}"#).trim_end_matches('='));
    home.write(
        "docker/config.json",
        json!({ "auths": {
            "myregistry.azurecr.io": { "auth": BASE64.encode("00000000-0000-0000-0000-000000000000:"), "identitytoken": token },
            "ghcr.io": { "identitytoken": token },
        } })
        .to_string(),
    );
    let of = |registry: &str| secret(registry, &[]).env("DOCKER_CONFIG", &home.join("docker")).run();
    let acr = of("myregistry.azurecr.io");
    assert!(acr.stderr.contains("expires at 2100-01-01"), "{acr:?}");
    let entry = config(&yaml(acr))["auths"]["myregistry.azurecr.io"].clone();
    assert_eq!(entry["username"], "00000000-0000-0000-0000-000000000000");
    assert_eq!(entry["password"], token.as_str());
    let other = of("ghcr.io").exits(1);
    assert!(other.stdout.is_empty() && other.stderr.contains("the kubelet needs a password"), "{other:?}");
    let none = of("other.azurecr.io").exits(1);
    assert!(
        none.stderr.contains("transload login other.azurecr.io") && none.stderr.contains("identity of its kubelets"),
        "{none:?}"
    );
}

#[test]
fn names_that_kubernetes_refuses_are_refused_here() {
    for args in [
        &["k8s", "secret", "--registry", "r.io", "--name", "Bad_Name"][..],
        &["k8s", "secret", "--registry", "r.io", "--name", "a\nkind: Pod"],
        &["k8s", "secret", "--registry", "r.io", "--name", "a", "--namespace", "a.b"],
        &["k8s", "pod", "nginx", "--name", "x: y"],
        &["k8s", "pod", "nginx", "--secret", "-"],
        &["k8s", "pod", "nginx", "--namespace", ""],
    ] {
        let run = transload(args).exits(2);
        assert!(run.stderr.contains("is not a valid name in Kubernetes"), "{run:?}");
        assert!(run.stdout.is_empty());
    }
    // A password is no argument.
    transload(&["k8s", "secret", "--registry", "r.io", "--name", "a", "--username", "u", "--password", "p"]).exits(2);
}

#[test]
fn a_pod_pulls_with_the_secret() {
    let image = "myregistry.azurecr.io/library/hello-world";
    let args = ["k8s", "pod", image, "--secret", "acr", "--namespace", "team-a", "--restart", "never"];
    let pod = yaml(transload(&args));
    assert_eq!((&pod["apiVersion"], &pod["kind"]), (&json!("v1"), &json!("Pod")));
    assert_eq!(pod["metadata"], json!({ "name": "hello-world", "namespace": "team-a" }));
    assert_eq!(pod["spec"]["imagePullSecrets"], json!([{ "name": "acr" }]));
    assert_eq!(pod["spec"]["restartPolicy"], "Never");
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["name"], "hello-world");
    assert_eq!(container["image"], format!("{image}:latest"));

    let digest = format!("ghcr.io/o/My-image_x.y@sha256:{}", "a".repeat(64)).to_lowercase();
    let pod = yaml(transload(&["k8s", "pod", &digest]));
    assert_eq!(pod["metadata"], json!({ "name": "my-image-x-y" }));
    assert_eq!(pod["spec"]["containers"][0]["image"], digest);
    assert!(pod["spec"].get("imagePullSecrets").is_none());
    let pod = yaml(transload(&["k8s", "pod", "yes", "--name", "no"]));
    assert_eq!(pod["metadata"]["name"], "no");
    assert_eq!(pod["spec"]["containers"][0]["name"], "yes");
}

#[test]
fn hosts_is_what_the_node_gets() {
    let run =
        transload(&["k8s", "hosts", "--proxy", "http://10.0.0.7:5000", "--acr", "myregistry.azurecr.io/docker.io"]);
    let text = run.ok().stdout;
    let at = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("no {needle} in {text}"));
    assert_eq!(at("server = \"https://registry-1.docker.io\""), 0);
    assert!(at("[host.\"http://10.0.0.7:5000\"]") < at("[host.\"https://myregistry.azurecr.io/v2/docker.io\"]"));
    transload(&["k8s", "hosts", "--proxy", "transload.default.svc"]).exits(2);
}
