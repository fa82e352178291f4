//! docs/guides/aks.md tells the truth: its transload lines run, against look-alikes of Docker Hub and ACR.
//! Its `az` and `helm` lines are for deploy/check.sh.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use transload::demo::persona::{Account, Grant};

use super::docs::{PRINCIPAL, SECRET, World, blocks_of, file};
use super::support::transload;

const PULLER: &str = "9e8d7c6b-1111-2222-3333-444455556666";
const PULL_SECRET: &str = "pull~Only/+=%";

#[test]
fn the_journey_runs() {
    let world = World::with(vec![
        Account::new(PRINCIPAL, SECRET, Grant::everything()),
        Account::new(PULLER, PULL_SECRET, vec![Grant::new("*", "pull,metadata_read")]),
    ]);
    // What kubectl is given.
    world.home.program(
        "bin/kubectl",
        "test \"$*\" = 'apply -f -' && cat >> \"$HOME/applied.yaml\" && echo --- >> \"$HOME/applied.yaml\"",
    );
    world.home.write("images.txt", "hello-world\nnginx:1.27 # a comment\n");
    let fixture = concat!("oci:", env!("CARGO_MANIFEST_DIR"), "/fixtures/hello-world:latest");
    transload(&["copy", fixture, &format!("oci:{}", world.home.join("images/transload"))]).ok();

    let mut ran = Vec::new();
    for line in blocks_of("docs/guides/aks.md", "console").concat() {
        let command = line.strip_prefix("$ ").unwrap_or_else(|| panic!("not a command: {line}"));
        let run = world.shell(&format!("PATH=\"$HOME/bin:$PATH\" && cd \"$HOME\" && {command}"));
        let run = run.env("PUSH_ID", PRINCIPAL).env("PUSH_SECRET", SECRET);
        let run = run.env("PULL_ID", PULLER).env("PULL_SECRET", PULL_SECRET).run();
        assert!(run.code == 0, "$ {command}\n{run:?}");
        assert!(!run.stderr.contains("WARN") && !run.stderr.contains("error"), "$ {command}\n{run:?}");
        ran.push(
            command.split_whitespace().skip_while(|word| *word != "transload").nth(1).expect("a command").to_owned(),
        );
    }
    let wanted = ["login", "copy", "inspect", "k8s", "k8s", "copy", "mirror", "mirror", "mirror", "k8s", "k8s"];
    assert_eq!(ran, wanted);
    world.hello.assert_at(world.mirror.addr(), "library/hello-world", "latest");
    world.hello.assert_at(world.mirror.addr(), "docker.io/library/hello-world", "latest");

    let applied = world.home.read("applied.yaml");
    let objects: Vec<Value> = applied
        .split("---\n")
        .filter(|text| !text.is_empty())
        .map(|text| serde_saphyr::from_str(text).expect("YAML"))
        .collect();
    let [secret, pod, writer] = &objects[..] else { panic!("{applied}") };
    assert_eq!(pod["spec"]["imagePullSecrets"][0]["name"], secret["metadata"]["name"]);
    // The pod's image can be pulled with the pod's secret, and nothing can be pushed with it.
    let config = |secret: &Value| {
        let config = secret["data"][".dockerconfigjson"].as_str().expect("data");
        world.home.write("secret.json", BASE64.decode(config).expect("base64"))
    };
    let image = pod["spec"]["containers"][0]["image"].as_str().expect("an image");
    let with = |secret: &Value, line: &str| world.shell(&format!("{line} --auth-file {}", config(secret))).run();
    let push = "transload copy nginx:1.27 myregistry.azurecr.io/nginx";
    with(secret, &format!("transload inspect {image}")).ok();
    with(secret, push).exits(1);
    // What is written back is by the one who may, in the namespace of the chart, by the name in its values.
    with(writer, push).ok();
    assert_eq!(writer["metadata"], serde_json::json!({ "name": "acr-write", "namespace": "transload" }));
    let values = blocks_of("docs/guides/aks.md", "yaml").concat().join("\n");
    let values: Value = serde_saphyr::from_str(&values).expect("YAML");
    assert_eq!(values["proxy"]["writeBack"]["existingSecret"], writer["metadata"]["name"]);
}

/// What the guide prints for a node is what the chart's DaemonSet writes there.
#[test]
fn the_addresses_agree() {
    let values: Value = serde_saphyr::from_str(&file("deploy/helm/transload/values.yaml")).expect("YAML");
    let service = &values["proxy"]["service"];
    let url = format!("http://{}:{}", service["clusterIP"].as_str().expect("an address"), service["port"]);
    let guide = file("docs/guides/aks.md");
    assert!(guide.contains(&format!("transload k8s hosts --proxy {url} --acr ")), "{url}");
    assert!(guide.contains(&format!("`{}`, in AKS's own service CIDR", service["clusterIP"].as_str().expect("one"))));
    let version = format!("myregistry.azurecr.io/transload:{}", env!("CARGO_PKG_VERSION"));
    assert!(guide.contains(&version), "{version}");
    let chart: Value = serde_saphyr::from_str(&file("deploy/helm/transload/Chart.yaml")).expect("YAML");
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}
