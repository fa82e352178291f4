"""Checks the chart: what helm renders, against Kubernetes' schemas and against this project's own rules.

Usage: python check.py HELM CHART [TRANSLOAD], by a Python that has kubernetes-validate and promql-parser.
With TRANSLOAD, the program: its command lines and its own YAML too.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import jsonschema
import kubernetes_validate
import promql_parser
import yaml

from running import get, metrics as told_by, plain, running

HELM, CHART = str(pathlib.Path(sys.argv[1]).resolve()), pathlib.Path(sys.argv[2]).resolve()
PROGRAM = sys.argv[3] if len(sys.argv) > 3 else None
# The oldest that Chart.yaml allows, and the newest that there are schemas of.
VERSIONS = ["1.29", kubernetes_validate.latest_version()]
# Prometheus' operator's and Cilium's own: no schema of Kubernetes.
FOREIGN = {"ServiceMonitor", "PrometheusRule", "CiliumNetworkPolicy"}
checked = 0


def run(*command, code=0, text=None):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, input=text)
    if (done.returncode == 0) != (code == 0):
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def check(what, holds):
    global checked
    checked += 1
    if not holds:
        sys.exit(f"does not hold: {what}")


def validate(document, where):
    if document["kind"] in FOREIGN:
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            sys.exit(f"{where}: {document['kind']} for Kubernetes {version}: {list(error.path)}: {error.message}")
    check("validated", True)


def check_shutdown():
    """A pod that stops still answers while it is sent connections: the kubelet waits, or the proxy does."""
    for version, sleeps in [("1.29.0", None), ("1.30.0", 5), ("1.36.1", 5)]:
        for values in ("deployment", "users"):
            documents = template("--values", str(CHART / f"ci/{values}.yaml"), "--kube-version", version,
                                 "--set", "proxy.terminationGracePeriodSeconds=70")
            pod = next(pod for _, pod in pod_specs(documents) if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "proxy")
            container = pod["spec"]["containers"][0]
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds")
            check(f"{version}: the kubelet sleeps {sleep}", sleep == sleeps)
            flags = dict(argument[2:].split("=", 1) for argument in container["args"] if "=" in argument)
            if "config" in flags:
                config = next(document["data"]["proxy.yaml"] for document in documents if "proxy.yaml" in document.get("data", {}))
                flags = yaml.safe_load(config)["limits"]
            delay, drain = int(flags["shutdown-delay"]), int(flags["drain-timeout"])
            check(f"{version}: the proxy waits {delay} s", delay == (0 if sleeps else 5))
            check(f"{version}: {drain} s are left to drain", drain == 62)
    documents = template("--set", "image.repository=r.io/transload", "--set", "proxy.shutdownDelaySeconds=0", "--kube-version", "1.36.0")
    check("no delay is none", all("lifecycle" not in pod["spec"]["containers"][0] for _, pod in pod_specs(documents)))


def template(*values):
    text = run(HELM, "template", "transload", str(CHART), "--namespace", "transload", *values).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def pod_specs(documents):
    for document in documents:
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield document, spec["template"]


def check_pods(documents):
    for document, pod in pod_specs(documents):
        name, spec = document["metadata"]["name"], pod["spec"]
        selector = document["spec"].get("selector", {}).get("matchLabels", {})
        check(f"{name} selects its pods", selector.items() <= pod["metadata"]["labels"].items())
        root = pod["metadata"]["labels"]["app.kubernetes.io/component"] == "node"
        check(f"{name} is root only on nodes", root or spec["securityContext"]["runAsNonRoot"] is True)
        check(f"{name} has no token of the cluster", spec["automountServiceAccountToken"] is False)
        for container in spec["containers"]:
            security = container["securityContext"]
            check(f"{name}: read-only root", security["readOnlyRootFilesystem"] is True)
            check(f"{name}: no capability", security["capabilities"] == {"drop": ["ALL"]})
            check(f"{name}: a memory limit", "memory" in container["resources"]["limits"])
            check(f"{name}: its mounts are volumes",
                  {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in spec["volumes"]})
            if PROGRAM:
                # Kubernetes' own: an index for each pod.
                run(PROGRAM, *container["args"], "--help")
        secrets = [volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume]
        check(f"{name}: host paths {secrets}", root or all(path == "/mnt/transload" for path in secrets))
        if root:
            check("a node needs containerd's directory only", secrets == ["/etc/containerd/certs.d"])
    for service in (document for document in documents if document["kind"] == "Service"):
        name, selector = service["metadata"]["name"], service["spec"]["selector"].items()
        found = [pod for _, pod in pod_specs(documents) if selector <= pod["metadata"]["labels"].items()]
        check(f"the Service {name} finds its pods", len(found) == 1)
        ports = {port["name"] for port in found[0]["spec"]["containers"][0]["ports"]}
        check("its port is there", all(port["targetPort"] in ports for port in service["spec"]["ports"]))
    for monitor in (document for document in documents if document["kind"] == "ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"].items()
        watched = [document for document in documents if document["kind"] == "Service" and selector <= document["metadata"]["labels"].items()]
        check("a ServiceMonitor finds one Service", len(watched) == 1)


def expressions(documents):
    for document in documents:
        if document["kind"] == "PrometheusRule":
            for group in document["spec"]["groups"]:
                yield from (rule["expr"] for rule in group["rules"])
        if document["kind"] == "ConfigMap":
            for name, text in document["data"].items():
                if name.endswith(".json"):
                    board = json.loads(text)
                    check("a dashboard's panels have ids of their own",
                          len({panel["id"] for panel in board["panels"]}) == len(board["panels"]))
                    yield from (variable["query"].split("(", 1)[1].rsplit(",", 1)[0]
                                for variable in board["templating"]["list"] if variable["type"] == "query")
                    for panel in board["panels"]:
                        yield from (target["expr"] for target in panel.get("targets", []))


def check_expressions(documents):
    """They parse; the metrics in them are returned."""
    names = set()
    for expression in expressions(documents):
        plain = expression.replace("$__rate_interval", "5m").replace("$instance", "x")
        promql_parser.parse(plain)
        names |= set(re.findall(r"\btransload_[a-z0-9_]+", plain))
        check("an expression", True)
    return names


def check_nodes(documents):
    """The proxy's address on the node is one of the proxy's."""
    node = next((pod for _, pod in pod_specs(documents) if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "node"), None)
    if node is None:
        return
    url = next(arg.split("=", 1)[1] for arg in node["spec"]["containers"][0]["args"] if arg.startswith("--proxy="))
    reached = set()
    for document in documents:
        if document["kind"] == "Service":
            for port in document["spec"]["ports"]:
                reached.add(f"http://{document['spec'].get('clusterIP')}:{port['port']}")
                reached.add(f"http://127.0.0.1:{port.get('nodePort')}")
        if document["kind"] == "DaemonSet":
            for port in document["spec"]["template"]["spec"]["containers"][0].get("ports", []):
                reached.add(f"http://{port.get('hostIP')}:{port.get('hostPort')}")
    check(f"{url} is one of {reached}", url in reached)


def check_refusals():
    image = "image.repository=myregistry.azurecr.io/transload"
    for values, why in [
        ([], "image.repository is not set"),
        ([image, "proxy.kind=StatefulSet"], "proxy"),
        ([image, "nonsense=1"], "nonsense"),
        ([image, "nodeMirror.registries={../..}"], "registries"),
        (["image.repository=me/transload"], "can't depend on it"),
        ([image, "proxy.service.clusterIP="], "nodes don't ask the cluster's DNS"),
        ([image, "mirror.enabled=true"], "mirror.to is not set"),
        ([image, "mirror.enabled=true", "mirror.to=r.io", "mirror.kind=Deployment", "mirror.shards=2"], "have no index"),
        ([image, "mirror.interval=soon"], "interval"),
        ([image, "proxy.config.nonsense=1"], "nonsense"),
        ([image, "identity.servicePrincipal.clientId=x"], "tenantId is not set"),
        ([image, "proxy.users.existingSecret=u", "proxy.users.port=5000"], "port"),
        ([image, "proxy.users.tlsSecret=t"], "there are no users"),
        ([image, "proxy.users.existingSecret=u", "proxy.config.listen[0].http=0.0.0.0:5000"], "says all of where"),
        ([image, "proxy.upstreams[0].name=docker.io", "proxy.upstreams[0].writeBack=true"], "needs two tiers"),
        ([image, "proxy.writeBack.existingSecret=w"], "nothing is written back"),
        ([image, "proxy.acceptOpenAccess=yes"], "acceptOpenAccess"),
        *((values, OPEN) for values in open_doors(image)),
        ([image, "proxy.terminationGracePeriodSeconds=8"], "must be more than"),
    ]:
        flags = [part for value in values for part in ("--set", value)]
        done = run(HELM, "template", "t", str(CHART), *flags, code=1)
        check(f"helm refuses {values} for {why!r}: {done.stderr}", why in done.stderr)


# What the chart says of a proxy that everyone can reach and nobody has to give a password to.
OPEN = "whoever can reach it could pull everything that the proxy's identity can pull"


def open_doors(image):
    """Values with which everyone outside the cluster could pull everything."""
    users = "proxy.users.existingSecret=u"
    both = ["proxy.upstreams[0].name=docker.io", "proxy.upstreams[1].name=ghcr.io"]
    daemon = ["proxy.kind=DaemonSet", "proxy.service.clusterIP="]
    for outside in (["proxy.service.type=NodePort"], ["proxy.service.type=LoadBalancer"],
                    ["proxy.service.type=NodePort", "proxy.service.nodePort=30500"],
                    [*daemon, "proxy.hostIP="], [*daemon, "proxy.hostIP=0.0.0.0"], [*daemon, "proxy.hostIP=10.1.2.3"],
                    [*daemon, "proxy.service.type=NodePort"]):
        outside = [image, "nodeMirror.enabled=false", *outside]
        yield outside
        # All but one upstream are limited; a list of what is not allowed; a limit of another kind.
        yield [*outside, *both, "proxy.upstreams[0].allow={library/*}"]
        yield [*outside, "proxy.upstreams[0].name=docker.io", "proxy.upstreams[0].deny={secret/**}"]
        yield [*outside, "proxy.config.limits.fills=3"]
        yield [*outside, "proxy.config.upstreams[0].name=docker.io", "proxy.config.upstreams[0].deny={a}"]
        # The other listener asks for a password.
        yield [*outside, "proxy.config.listen[0].http=0.0.0.0:5000", "proxy.config.listen[1].http=0.0.0.0:5001",
               "proxy.config.listen[1].users-file=/etc/transload/secrets/u/users"]
    # The port on the node is the one without a password.
    yield [image, "nodeMirror.enabled=false", *daemon, "proxy.hostIP=10.1.2.3", users]


def check_open_door():
    """Outside the cluster: what asks for a password, what is limited by `allow`, and what was accepted."""
    def services(*values):
        flags = [part for value in ("image.repository=r.io/t", "nodeMirror.enabled=false", *values) for part in ("--set", value)]
        documents = template(*flags)
        check_pods(documents)
        found = [document for document in documents if document["kind"] == "Service"]
        return {(service["spec"]["type"], *(port["name"] for port in service["spec"]["ports"])) for service in found}

    allowed = ["proxy.upstreams[0].name=docker.io", "proxy.upstreams[0].allow={library/*}"]
    listener = "proxy.config.listen[0]."
    for kind in ("NodePort", "LoadBalancer"):
        outside = f"proxy.service.type={kind}"
        everything = {(kind, "http", "ops")}
        check("accepted", services(outside, "proxy.acceptOpenAccess=true") == everything)
        check("allow lists", services(outside, *allowed) == everything)
        in_config = [value.replace("proxy.", "proxy.config.") for value in allowed]
        check("allow lists in proxy.config", services(outside, *in_config) == everything)
        for secret in ("users-file", "token-file"):
            values = (listener + "http=0.0.0.0:5000", f"{listener}{secret}=/etc/transload/secrets/s/f")
            check(secret, services(outside, *values) == everything)
        tls = [f"{listener}{key}=/etc/transload/secrets/s/f" for key in ("certificate", "key", "client-ca")]
        check("client certificates", services(outside, listener + "https=0.0.0.0:5000", *tls) == everything)
        # The port without a password stays inside.
        users = (outside, "proxy.users.existingSecret=u", "proxy.service.nodePort=30500")
        check("users", services(*users) == {("ClusterIP", "http", "users", "ops"), (kind, "users")})
        check("users, accepted", services(*users, "proxy.acceptOpenAccess=true") == {(kind, "http", "users", "ops")})
    daemon = ("proxy.kind=DaemonSet", "proxy.service.clusterIP=")
    for inside in (["proxy.hostIP=127.0.0.1"], ["proxy.hostIP=::1"], ["proxy.hostIP=10.1.2.3", "proxy.hostPort=0"],
                   ["proxy.hostIP=10.1.2.3", "proxy.acceptOpenAccess=true"], ["proxy.hostIP=10.1.2.3", *allowed]):
        check(f"{inside}", services(*daemon, *inside) == {("ClusterIP", "http", "ops")})
    notes = [run(HELM, "install", "t", str(CHART), "--dry-run=client", *flags).stdout.split("NOTES:", 1)[1] for flags in (
        ["--values", str(CHART / "ci/minimal.yaml")], ["--values", str(CHART / "ci/outside.yaml")], ["--values", str(CHART / "ci/users.yaml")])]
    check("the notes repeat what was accepted", "WARNING: proxy.service.type NodePort is open: everyone who can reach it" in notes[0])
    check("and that alone", "WARNING" not in notes[1] + notes[2] and "transload-proxy-users at port 5443" in notes[1])


def check_program():
    """What the program prints for kubectl."""
    secret = run(PROGRAM, "k8s", "secret", "--registry", "myregistry.azurecr.io", "--name", "acr", "--namespace", "team",
                 "--username", "u", "--password-stdin", text="p: '\"{{").stdout
    pod = run(PROGRAM, "k8s", "pod", "myregistry.azurecr.io/library/hello-world", "--secret", "acr", "--restart", "never").stdout
    for text in [secret, pod]:
        for document in yaml.safe_load_all(text):
            validate(document, "transload k8s")


def check_configs(documents):
    """The program takes the files that the chart makes, where the chart mounts them."""
    configs = {document["metadata"]["name"]: document["data"] for document in documents if document["kind"] == "ConfigMap"}
    for _, pod in pod_specs(documents):
        container = pod["spec"]["containers"][0]
        with tempfile.TemporaryDirectory() as root:
            paths = {}
            for volume in pod["spec"]["volumes"]:
                data = configs.get(volume.get("configMap", {}).get("name"), {})
                for mount in container["volumeMounts"]:
                    if mount["name"] == volume["name"]:
                        for key, text in data.items():
                            path = pathlib.Path(root, key)
                            path.write_text(text, encoding="utf-8")
                            paths[f"{mount['mountPath']}/{key}"] = str(path)
            if not paths:
                continue
            arguments = container["args"]
            named = [argument.removeprefix("--config=") for argument in arguments]
            used = [paths[name] for name in named if name in paths]
            check(f"the file of {paths} is named in {arguments}", len(used) == 1)
            to = [argument for argument in arguments if argument.startswith("--to=")]
            said = run(PROGRAM, arguments[0], "check", used[0], *to).stdout
            check(f"{arguments[0]} check says something", said)
            if arguments[0] == "proxy":
                check(f"the Service's port and the cache's volume: {said}", "0.0.0.0:5000" in said and "/var/cache/transload" in said)
                mounts = [mount["mountPath"] + "/" for mount in container["volumeMounts"]]
                for name in re.findall(r"^ *(?:- )?(?:certificate|key|[a-z-]+-file): (\S+)$", text, re.M):
                    check(f"{name} is mounted", name.startswith(tuple(mounts)))


def check_users():
    """By the file that the chart makes, nodes give no password, others must; and one upstream is written back."""
    values = ["--values", str(CHART / "ci/users.yaml")]
    config = next(document for document in template(*values) if document["metadata"]["name"] == "transload-proxy"
                  and document["kind"] == "ConfigMap")["data"]["proxy.yaml"]
    with tempfile.TemporaryDirectory() as root:
        path = pathlib.Path(root, "proxy.yaml")
        path.write_text(config, encoding="utf-8")
        said = run(PROGRAM, "proxy", "check", str(path)).stdout
        check(said, "listens on https://0.0.0.0:5443: access with user name and password" in said)
        check(said, "listens on http://0.0.0.0:5000: access for everyone who can connect" in said)
        written = "copied into myregistry.azurecr.io, with the credentials of /run/transload/write-back/.dockerconfigjson"
        check(said, said.count(written) == 1)
        # A hash that the first programs for it were tested with.
        pathlib.Path(root, "htpasswd").write_text("u:$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\n")
        pathlib.Path(root, ".dockerconfigjson").write_text("{}")
        config = yaml.safe_load(config)
        # Without TLS, which has no part in who may ask.
        config["listen"] = [{"http": "127.0.0.1:0", **{key: door[key] for key in door if key == "users-file"}}
                            for door in config["listen"]]
        text = yaml.safe_dump(config, sort_keys=False)
        for place in ("/etc/transload/users", "/run/transload/write-back", "/var/cache/transload"):
            text = text.replace(place, root)
        path.write_text(text, encoding="utf-8")
        with running(PROGRAM, "proxy", "--config", str(path)) as tell:
            # Not where it takes orders.
            after = f"proxying {', '.join(upstream['name'] for upstream in config['upstreams'])} on "
            doors = [tell(after) for _ in config["listen"]]
            answers = [get(door + "/v2/", user)[0] for door in doors for user in (None, "u:U*U", "u:U*U*")]
        check(f"who may ask: {answers}", answers == [200, 200, 200, 401, 200, 401])


def check_schemas():
    """The published schemas are schemas, and take what the program takes: to somebody else's validator."""
    lists, proxies = (jsonschema.Draft202012Validator(json.loads(run(PROGRAM, what, "schema").stdout)) for what in ("mirror", "proxy"))
    for schema in (lists, proxies):
        jsonschema.Draft202012Validator.check_schema(schema.schema)
    root = CHART / "../../.."
    pages = "".join((root / "docs/guides" / name).read_text(encoding="utf-8") for name in ("mirror.md", "proxy.md"))
    documents = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", pages, re.M | re.S)]
    good = [(lists, yaml.safe_load((root / "fixtures/lists" / name).read_text())) for name in ("images.yaml", "images.json")]
    good += [(lists if "images" in document else proxies, document) for document in documents]
    for values in ("staying", "users"):
        for document in template("--values", str(CHART / f"ci/{values}.yaml")):
            good += [(proxies, yaml.safe_load(text)) for name, text in document.get("data", {}).items() if name == "proxy.yaml"]
    check("the guides have one of each", [schema for schema, _ in good].count(lists) == 3)
    check("the chart makes two", [schema for schema, _ in good].count(proxies) == 3)
    for schema, document in good:
        error = next(schema.iter_errors(document), None)
        check(f"{document} fits: {error}", error is None)
        check("a key that isn't there is refused", not schema.is_valid({**document, "nonsense": 1}))


def check_restarts():
    """What the proxy reads again by itself restarts no pod; what it doesn't does."""
    def checksum(*values):
        documents = template("--values", str(CHART / "ci/staying.yaml"), *values)
        pod = next(pod for _, pod in pod_specs(documents) if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "proxy")
        return pod["metadata"]["annotations"]["checksum/config"]

    before = checksum()
    check("upstreams restart nothing", before == checksum("--set-json", 'proxy.upstreams=[{"name":"ghcr.io"}]'))
    check("limits do", before != checksum("--set", "proxy.config.limits.fills=3"))
    check("the cache's size does", before != checksum("--set", "proxy.cache.size=1GiB"))


def check_principal():
    """A service principal's secret is in files, which are read again, and in no variable, which never changes."""
    for values, secret in ((["ci/daemonset.yaml"], "transload-azure"),
                           (["ci/staying.yaml", "--set", "identity.servicePrincipal.existingSecret=mine"], "mine")):
        documents = template("--values", str(CHART / values[0]), *values[1:])
        asking = [pod["spec"] for _, pod in pod_specs(documents) if pod["metadata"]["labels"]["app.kubernetes.io/component"] != "node"]
        check("a proxy and a mirror", len(asking) == 2)
        for spec in asking:
            container = spec["containers"][0]
            check("no variable has a secret", not any("valueFrom" in variable for variable in container["env"]))
            directory = next(variable["value"] for variable in container["env"] if variable["name"] == "TRANSLOAD_AZURE_PRINCIPAL")
            mount = next(mount for mount in container["volumeMounts"] if mount["mountPath"] == directory)
            # One file alone (subPath) would never change.
            check("it's the directory that is mounted", mount["readOnly"] is True and "subPath" not in mount)
            volume = next(volume["secret"] for volume in spec["volumes"] if volume["name"] == mount["name"])
            files = {item["path"] for item in volume["items"]}
            check(f"{secret}: {files}", volume["secretName"] == secret and files == {"AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET"})
    # Another identity counts.
    workload = ["--set", "identity.workloadIdentity.clientId=x", "--set", "identity.servicePrincipal.existingSecret=mine"]
    text = json.dumps(template("--values", str(CHART / "ci/staying.yaml"), *workload))
    check("not beside a workload identity", "TRANSLOAD_AZURE_PRINCIPAL" not in text and "mine" not in text)


def check_scalars():
    """Words that YAML takes for booleans, and numbers, as Helm hands them on."""
    values = ["--set", "proxy.config.cache.scrub=off,proxy.config.logs.access=off,proxy.config.cache.keep-free=1073741824",
              "--set-json", 'proxy.config.upstreams=[{"name":"docker.io","tag-ttl":"5m","tiers":["docker.io"]}]',
              "--set", "mirror.interval=3600"]
    documents = template("--values", str(CHART / "ci/staying.yaml"), *values)
    mirror = next(pod for _, pod in pod_specs(documents) if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "mirror")
    check("a number is seconds", "--interval=3600s" in mirror["spec"]["containers"][0]["args"])
    booleans = {"proxy": {"config": {"cache": {"scrub": False}, "logs": {"access": False}}}}
    with tempfile.TemporaryDirectory() as root:
        path = pathlib.Path(root, "values.yaml")
        # What `off` is to YAML 1.1, which Helm reads.
        path.write_text(yaml.safe_dump(booleans))
        for more in (values, ["--values", str(path)]):
            check_configs(template("--values", str(CHART / "ci/staying.yaml"), *more))


def check_metrics(watched):
    """What rules and dashboards watch is what a running proxy and mirror tell."""
    with tempfile.TemporaryDirectory() as root:
        proxy = ["--upstream", "docker.io=127.0.0.1:1", "--cache", root, "--listen", "127.0.0.1:0"]
        with running(PROGRAM, "proxy", *proxy, "--listen-ops", "127.0.0.1:0") as tell:
            url = tell("/metrics on ")
            for probe in probes("deployment", "proxy"):
                check(f"{probe} answers", get(url + probe)[0] == 200)
            told = told_by(url)
        images = pathlib.Path(root, "images.txt")
        images.write_text("127.0.0.1:1/a\n", encoding="utf-8")
        with running(PROGRAM, "mirror", str(images), "--to=127.0.0.1:2", "--interval=1h", "--listen-ops=127.0.0.1:0") as tell:
            url = tell("/metrics on ")
            check("a mirror is alive before its first run has ended", "/healthz" in probes("staying", "mirror"))
            check("/healthz answers", get(url + "/healthz")[0] == 200)
            told |= told_by(url)
    check("pages of metrics", {"transload_proxy_fills_in_progress", "transload_mirror_list_valid"} <= told)
    # A metric without a value yet is not on the page; tests compare the reference with the program.
    reference = (CHART / "../../../docs/reference/metrics.md").read_text(encoding="utf-8")
    told |= {plain(name) for name in re.findall(r"`(transload_[a-z_]+)`", reference)}
    unknown = {name for name in watched if plain(name) not in told}
    check(f"metrics that are watched are told: {' '.join(sorted(unknown)) or 'all'}", not unknown)


def probes(values, component):
    """The paths that the kubelet asks it for."""
    documents = template("--values", str(CHART / f"ci/{values}.yaml"))
    pod = next(pod for _, pod in pod_specs(documents) if pod["metadata"]["labels"]["app.kubernetes.io/component"] == component)
    return {probe["httpGet"]["path"] for name, probe in pod["spec"]["containers"][0].items() if name.endswith("Probe")}


def check_guide():
    """The guide's helm lines render, and with each of its blocks of values."""
    guide = (CHART / "../../../docs/guides/aks.md").read_text(encoding="utf-8")
    lines = re.findall(r"^helm upgrade --install (.*)$", guide, re.M)
    values = re.findall(r"^```yaml\n(.*?)^```", guide, re.M | re.S)
    check("the guide has a helm line, and values", lines and values)
    for line, more in ((line, more) for line in lines for more in ("", *values)):
        line = line.replace("--create-namespace", "").replace("deploy/helm/transload", str(CHART))
        # What stands in the line goes before what stands in a file.
        line = re.sub(r" --set-json 'proxy\.upstreams=[^']*'", "", line) if more else line
        script = f"cd \"$(mktemp -d)\" && echo hello-world > images.txt && cat > values.yaml && {HELM} template {line} --values values.yaml"
        text = run("bash", "-c", f"export CLIENT_ID=11111111-2222-3333-4444-555555555555; {script}", text=more).stdout
        documents = [document for document in yaml.safe_load_all(text) if document]
        kinds = {document["kind"] for document in documents}
        check(f"the guide's {kinds}", {"Deployment", "DaemonSet", "CronJob", "Service"} <= kinds)
        subject = re.search(r"--subject (\S+)", guide).group(1)
        account = next(document for document in documents if document["kind"] == "ServiceAccount")
        namespace = re.search(r"--namespace (\S+)", line).group(1)
        check("the federated credential names it", subject == f"system:serviceaccount:{namespace}:{account['metadata']['name']}")
        for document in documents:
            validate(document, "the guide")
        check_pods(documents)


def main():
    metrics = set()
    for values in sorted((CHART / "ci").glob("*.yaml")):
        run(HELM, "lint", "--strict", str(CHART), "--values", str(values))
        documents = template("--values", str(values))
        names = [(document["kind"], document["metadata"]["name"]) for document in documents]
        check(f"no name twice in {names}", len(names) == len(set(names)))
        for document in documents:
            validate(document, values.name)
        check_pods(documents)
        check_nodes(documents)
        if PROGRAM:
            check_configs(documents)
        metrics |= check_expressions(documents)
        print(f"{values.name}: {len(documents)} objects for Kubernetes {', '.join(VERSIONS)}")
    check_refusals()
    check_open_door()
    check_principal()
    check_shutdown()
    check_guide()
    if PROGRAM:
        check_program()
        # A config that leaves out all but one key: the other values make the rest.
        check_configs(template("--values", str(CHART / "ci/deployment.yaml"), "--set", "proxy.config.limits.fills=3"))
        check_restarts()
        check_scalars()
        check_users()
        check_schemas()
        check_metrics(metrics)
    check("metrics are watched", metrics)
    print(f"metrics watched: {' '.join(sorted(metrics))}")
    print(f"{checked} passed, 0 failed")


main()
