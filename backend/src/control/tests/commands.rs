//! Tests of the commands on a fake daemon: CTL-5, CTL-7, CTL-17 to CTL-21, CTL-30 to CTL-45.

use std::sync::Arc;

use pitstop_format::{Listing, VolumeIo};
use serde_json::{Value, json};

use super::super::fake::{FakeTarget, GOLDEN_BYTES};
use super::super::hub::Hub;
use super::super::protocol::{ErrorClass, Failure, Request};
use super::{COMMANDS, Context, Done, negotiate};

struct Bench {
    context: Context,
    target: Arc<FakeTarget>,
}

impl Bench {
    fn new() -> Self {
        let target = FakeTarget::new();
        Bench { context: Context::new(target.clone(), Arc::new(Hub::default())), target }
    }

    fn run(&self, command: &str, arguments: Value) -> Result<Value, Failure> {
        match self.context.run(request(command, arguments))? {
            Done::Return(value) => Ok(value),
            Done::Quit => panic!("unexpected quit"),
        }
    }

    fn fails(&self, command: &str, arguments: Value) -> Failure {
        self.run(command, arguments).unwrap_err()
    }

    fn volume_names(&self) -> Vec<String> {
        let volumes = self.run("x-pitstop-query-volumes", json!({})).unwrap();
        volumes.as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap().to_owned()).collect()
    }
}

fn request(command: &str, arguments: Value) -> Request {
    let Value::Object(arguments) = arguments else { panic!("arguments must be an object") };
    Request { command: command.to_owned(), arguments }
}

fn add_arguments(id: &str) -> Value {
    json!({"type": "vhost-user-blk", "id": id, "node-name": "golden", "addr": {"type": "unix", "path": "/run/x.sock"}})
}

/// `base` with the members of `more` set, or removed where null.
fn with(mut base: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        if value.is_null() {
            base.as_object_mut().unwrap().remove(name);
        } else {
            base[name] = value.clone();
        }
    }
    base
}

/// CTL-5
#[test]
fn negotiation_comes_first() {
    let failure = negotiate(request("query-version", json!({}))).unwrap_err();
    let desc = "Expecting capabilities negotiation with 'qmp_capabilities'";
    assert_eq!(failure, Failure::command_not_found(desc));
    assert_eq!(negotiate(request("qmp_capabilities", json!({}))), Ok(()));
    assert_eq!(negotiate(request("qmp_capabilities", json!({"enable": []}))), Ok(()));
    for bad in [json!({"enable": ["oob"]}), json!({"enable": [1]}), json!({"enable": 1}), json!({"x": 1})] {
        assert_eq!(negotiate(request("qmp_capabilities", bad)).unwrap_err().class, ErrorClass::Generic);
    }
}

/// CTL-7
#[test]
fn a_second_negotiation_is_refused() {
    let desc = "Capabilities negotiation is already complete, command ignored";
    assert_eq!(Bench::new().fails("qmp_capabilities", json!({})), Failure::command_not_found(desc));
}

/// CTL-18
#[test]
fn an_unknown_command_is_named() {
    let failure = Bench::new().fails("foo", json!({}));
    assert_eq!(failure, Failure::command_not_found("The command foo has not been found"));
}

/// CTL-30
#[test]
fn query_commands_lists_every_command_in_order() {
    let listed = Bench::new().run("query-commands", json!({})).unwrap();
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names, COMMANDS.map(|(name, _)| name));
    assert!(names.is_sorted());
    for word in ["snapshot", "refresh", "delete", "volumes"] {
        assert!(names.iter().any(|name| name.contains(word)), "{word}");
    }
}

/// CTL-30: what the specification lists and what the program lists are the same.
#[test]
fn the_specification_lists_the_same_commands() {
    let spec = include_str!("../../../../spec/control.md");
    for (name, _) in COMMANDS {
        assert!(spec.contains(&format!("| `{name}` |")), "spec/control.md has no table row for {name}");
    }
    let rows = spec.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    for name in rows.filter(|name| name.contains(['-', '_']) || *name == "quit").filter(|name| !name.contains("_PIT")) {
        let is_event = name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        assert!(is_event || COMMANDS.iter().any(|(known, _)| *known == name), "{name} is specified but unknown");
    }
}

/// CTL-17: the texts are those of qemu-storage-daemon 10.0.
#[test]
fn bad_arguments_are_named_as_qemu_does() {
    let bench = Bench::new();
    let with = |more| with(add_arguments("a"), more);
    for (arguments, desc) in [
        (json!({}), "Parameter 'type' is missing"),
        (with(json!({"type": "foo"})), "Parameter 'type' does not accept value 'foo'"),
        (with(json!({"type": "nbd"})), "Parameter 'type' does not accept value 'nbd'"),
        (with(json!({"id": null})), "Parameter 'id' is missing"),
        (with(json!({"id": 3})), "Invalid parameter type for 'id', expected: string"),
        (with(json!({"id": ""})), "Invalid block export id"),
        (with(json!({"id": "a\u{0}"})), "Invalid block export id"),
        (with(json!({"id": "x".repeat(128)})), "Invalid block export id"),
        (with(json!({"node-name": null})), "Parameter 'node-name' is missing"),
        (with(json!({"writable": 1})), "Invalid parameter type for 'writable', expected: boolean"),
        (with(json!({"addr": null})), "Parameter 'addr' is missing"),
        (with(json!({"addr": "x"})), "Invalid parameter type for 'addr', expected: object"),
        (with(json!({"addr": {"path": "x"}})), "Parameter 'addr.type' is missing"),
        (with(json!({"addr": {"type": "fd"}})), "Parameter 'addr.type' does not accept value 'fd'"),
        (with(json!({"addr": {"type": "unix"}})), "Parameter 'addr.path' is missing"),
        (with(json!({"addr": {"type": "unix", "path": "x", "q": 1}})), "Parameter 'addr.q' is unexpected"),
        (with(json!({"num-queues": 0})), "num-queues must be greater than 0"),
        (with(json!({"num-queues": -1})), "Parameter 'num-queues' expects uint16_t"),
        (with(json!({"num-queues": 1.5})), "Parameter 'num-queues' expects uint16_t"),
        (with(json!({"num-queues": 70000})), "Parameter 'num-queues' expects uint16_t"),
        (with(json!({"num-queues": "1"})), "Parameter 'num-queues' expects uint64"),
        (
            with(json!({"x-pitstop-refresh-on-connect": true})),
            "Invalid parameter type for 'x-pitstop-refresh-on-connect', expected: string",
        ),
        (with(json!({"foo": 1})), "Parameter 'foo' is unexpected"),
    ] {
        assert_eq!(bench.fails("block-export-add", arguments.clone()), Failure::generic(desc), "{arguments}");
    }
    assert!(bench.target_exports().is_empty());
}

impl Bench {
    fn target_exports(&self) -> Vec<Value> {
        self.run("query-block-exports", json!({})).unwrap().as_array().unwrap().clone()
    }
}

/// CTL-17
#[test]
fn every_command_refuses_an_unexpected_argument() {
    let bench = Bench::new();
    for (name, _) in COMMANDS.iter().filter(|(name, _)| *name != "qmp_capabilities") {
        let required = match *name {
            "block-export-add" => add_arguments("a"),
            "block-export-del" => json!({"id": "a"}),
            "x-pitstop-refresh" | "x-pitstop-snapshot" | "x-pitstop-view-create" => {
                json!({"source": "golden", "name": "n"})
            }
            "x-pitstop-diff" => json!({"a": "golden", "b": "golden"}),
            "x-pitstop-map"
            | "x-pitstop-view-drop"
            | "x-pitstop-view-keep"
            | "x-pitstop-volume-hydrate"
            | "x-pitstop-volume-seal"
            | "x-pitstop-volume-set" => {
                json!({"name": "golden"})
            }
            "job-cancel" | "job-dismiss" | "job-pause" | "job-resume" => json!({"id": "a"}),
            "x-pitstop-read" => json!({"name": "golden", "start": 0, "length": 512}),
            "x-pitstop-write" => json!({"name": "golden", "start": 0, "zeros": 512}),
            "x-pitstop-backup" => json!({"name": "golden", "target": "/nowhere/golden"}),
            "x-pitstop-cache-create" | "x-pitstop-cache-delete" | "x-pitstop-cache-resize" => {
                json!({"name": "nightly"})
            }
            "x-pitstop-job-set-speed" => json!({"id": "a", "speed": 0}),
            "x-pitstop-volume-create" => json!({"name": "n", "size": 4096}),
            "x-pitstop-volume-delete" => json!({"name": "golden"}),
            "transaction" => json!({"actions": []}),
            "x-pitstop-split" => json!({"name": "golden"}),
            "x-pitstop-volume-rename" => json!({"name": "golden", "new-name": "n"}),
            _ => json!({}),
        };
        let failure = bench.context.run(request(name, with(required, json!({"zz": 1})))).unwrap_err();
        assert_eq!(failure, Failure::generic("Parameter 'zz' is unexpected"), "{name}");
    }
    assert_eq!(bench.volume_names(), ["golden"]);
}

/// CTL-32 to CTL-34, CTL-50, CTL-51, CTL-91
#[test]
fn exports_are_added_listed_and_deleted() {
    let bench = Bench::new();
    assert_eq!(bench.run("block-export-add", add_arguments("a")), Ok(json!({})));
    let arguments = with(
        add_arguments("busy"),
        json!({"writable": true, "num-queues": 3, "x-pitstop-on-enospc": "stop", "x-pitstop-refresh-on-connect": "g"}),
    );
    assert_eq!(bench.run("block-export-add", arguments), Ok(json!({})));
    let exports = bench.target_exports();
    assert_eq!(exports[1]["x-pitstop-on-enospc"], "stop");
    assert_eq!(exports[1]["x-pitstop-refresh-on-connect"], "g");
    let wrong = with(add_arguments("b"), json!({"x-pitstop-on-enospc": "wait"}));
    let text = "Parameter 'x-pitstop-on-enospc' does not accept value 'wait'";
    assert_eq!(bench.fails("block-export-add", wrong), Failure::generic(text));
    assert_eq!(
        exports[0],
        json!({
            "id": "a", "type": "vhost-user-blk", "node-name": "golden", "shutting-down": false,
            "x-pitstop-connected": false, "x-pitstop-writable": false, "x-pitstop-num-queues": 64,
            "x-pitstop-socket": "/run/x.sock", "x-pitstop-on-enospc": "report", "x-pitstop-starved": 0,
            "x-pitstop-refresh-on-connect": null,
        })
    );
    assert_eq!(exports[1]["x-pitstop-writable"], true);
    assert_eq!(exports[1]["x-pitstop-num-queues"], 3);

    let refused = bench.fails("block-export-del", json!({"id": "busy"}));
    assert_eq!(refused.class, ErrorClass::Generic);
    assert_eq!(bench.fails("block-export-del", json!({"id": "busy", "mode": "safe"})), refused);
    let unknown = bench.fails("block-export-del", json!({"id": "busy", "mode": "soft"}));
    assert_eq!(unknown.desc, "Parameter 'mode' does not accept value 'soft'");
    assert_eq!(bench.run("block-export-del", json!({"id": "busy", "mode": "hard"})), Ok(json!({})));
    assert_eq!(bench.run("block-export-del", json!({"id": "a"})), Ok(json!({})));
    assert_eq!(bench.fails("block-export-del", json!({"id": "a"})).class, ErrorClass::Generic);
    assert!(bench.target_exports().is_empty());
}

/// CTL-20, CTL-21
#[test]
fn the_daemons_error_text_is_passed_on_unchanged() {
    let bench = Bench::new();
    let container = bench.context.target.container();
    let missing = container.volume("nope").unwrap_err().to_string();
    for (command, arguments) in [
        ("x-pitstop-query-volumes", json!({"name": "nope"})),
        ("x-pitstop-map", json!({"name": "nope"})),
        ("x-pitstop-diff", json!({"a": "golden", "b": "nope"})),
        ("x-pitstop-snapshot", json!({"source": "nope", "name": "new"})),
        ("x-pitstop-refresh", json!({"name": "golden", "source": "nope"})),
        ("x-pitstop-split", json!({"name": "nope"})),
        ("x-pitstop-view-create", json!({"source": "nope", "name": "new"})),
        ("x-pitstop-view-drop", json!({"name": "nope"})),
        ("x-pitstop-view-keep", json!({"name": "nope"})),
        ("x-pitstop-volume-delete", json!({"name": "nope"})),
        ("x-pitstop-volume-rename", json!({"name": "nope", "new-name": "new"})),
        ("x-pitstop-volume-set", json!({"name": "nope", "durability": "none"})),
    ] {
        let expected = Failure { class: ErrorClass::DeviceNotFound, desc: missing.clone() };
        assert_eq!(bench.fails(command, arguments), expected, "{command}");
    }
    let failure = bench.fails("block-export-add", with(add_arguments("a"), json!({"node-name": "nope"})));
    assert_eq!(failure, Failure::generic(missing), "as QEMU does");
    let taken = container.create_volume("golden", 4096).unwrap_err().to_string();
    assert_eq!(
        bench.fails("x-pitstop-volume-create", json!({"name": "golden", "size": 4096})),
        Failure::generic(taken)
    );
}

/// CTL-36 to CTL-40
#[test]
fn volumes_are_created_listed_renamed_and_deleted() {
    let bench = Bench::new();
    let created = bench.run("x-pitstop-volume-create", json!({"name": "v", "size": 1 << 20})).unwrap();
    assert_eq!(created["volume"]["name"], "v");
    assert_eq!(created["volume"]["size-bytes"], 1 << 20);
    assert_eq!(bench.volume_names(), ["golden", "v"]);
    let listed = bench.run("x-pitstop-query-volumes", json!({"name": "golden"})).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["size-bytes"], GOLDEN_BYTES);
    assert_eq!(bench.run("x-pitstop-volume-rename", json!({"name": "v", "new-name": "w"})), Ok(json!({})));
    assert_eq!(bench.run("x-pitstop-volume-delete", json!({"name": "w"})), Ok(json!({})));
    assert_eq!(bench.volume_names(), ["golden"]);
    for size in [json!(-1), json!("4096"), json!(1.5)] {
        let failure = bench.fails("x-pitstop-volume-create", json!({"name": "v", "size": size}));
        assert_eq!(failure, Failure::generic("Parameter 'size' expects uint64"));
    }
}

/// CTL-130 to CTL-132, CTL-17
#[test]
fn durability_is_set_and_shown() {
    let bench = Bench::new();
    let created =
        bench.run("x-pitstop-volume-create", json!({"name": "v", "size": 4096, "durability": "none"})).unwrap();
    assert_eq!((&created["volume"]["durability"], &created["volume"]["undefined"]), (&json!("none"), &json!(false)));
    let set = |arguments| bench.run("x-pitstop-volume-set", arguments).unwrap()["volume"]["durability"].clone();
    assert_eq!(set(json!({"name": "v"})), "none");
    assert_eq!(set(json!({"name": "v", "durability": "flush"})), "flush");
    assert_eq!(set(json!({"name": "v", "defined": true})), "flush");
    assert_eq!(set(json!({"name": "golden", "durability": "none"})), "none");
    let wrong = bench.fails("x-pitstop-volume-set", json!({"name": "v", "durability": "some"}));
    assert_eq!(wrong, Failure::generic("Parameter 'durability' does not accept value 'some'"));
    let wrong = bench.fails("x-pitstop-volume-set", json!({"name": "v", "defined": "yes"}));
    assert_eq!(wrong, Failure::generic("Invalid parameter type for 'defined', expected: boolean"));
}

/// CTL-133
#[test]
fn pieces_of_volumes_are_read() {
    let bench = Bench::new();
    let container = bench.context.target.container();
    let io = pitstop_format::VolumeIo::new(container, container.volume("golden").unwrap());
    io.write_at(&[0xfb; 1024], 4096).unwrap();
    let read = |start, length| bench.run("x-pitstop-read", json!({"name": "golden", "start": start, "length": length}));
    let data = |text: String| json!({"data": text});
    assert_eq!(read(4096, 512), Ok(data("+/v7".repeat(170) + "+/s=")));
    assert_eq!(read(GOLDEN_BYTES - 512, 512), Ok(data("A".repeat(683) + "=")));
    assert!(read(0, 512 << 10).is_ok());
    for (start, length) in
        [(0, 0), (0, 513 << 10), (0, 100), (100, 512), (GOLDEN_BYTES, 512), (u64::MAX - 511, 512), (u64::MAX, 1)]
    {
        assert!(read(start, length).is_err(), "{start} {length}");
    }
    let missing = bench.fails("x-pitstop-read", json!({"name": "nope", "start": 0, "length": 512}));
    assert_eq!(missing.class, ErrorClass::DeviceNotFound);
}

/// CTL-135
#[test]
fn pieces_of_volumes_are_written() {
    let bench = Bench::new();
    let write = |start: u64, what: Value| with(json!({"name": "golden", "start": start}), what);
    let text = "+/v7".repeat(341) + "+w==";
    let ok = |arguments: Value| assert_eq!(bench.run("x-pitstop-write", arguments), Ok(json!({})));
    ok(write(4096, json!({"data": text, "flush": false})));
    let read = |start| bench.run("x-pitstop-read", json!({"name": "golden", "start": start, "length": 1024})).unwrap();
    assert_eq!(read(4096), json!({"data": text}));
    ok(write(4096, json!({"zeros": 512})));
    assert_eq!(read(4608)["data"].as_str().unwrap()[..680], text[..680]);
    assert_eq!(read(3584), json!({"data": "A".repeat(1366) + "=="}));
    ok(write(0, json!({"zeros": GOLDEN_BYTES})));
    ok(write(GOLDEN_BYTES, json!({"zeros": 0})));
    let long = "A".repeat((512 << 10) / 3 * 4 + 8);
    for (start, what) in [
        (0, json!({})),
        (0, json!({"data": text, "zeros": 1024})),
        (0, json!({"data": "+w"})),
        (0, json!({"data": "+w=="})),
        (0, json!({"data": long})),
        (100, json!({"zeros": 512})),
        (0, json!({"zeros": 100})),
        (GOLDEN_BYTES, json!({"zeros": 512})),
        (u64::MAX - 511, json!({"zeros": 1024})),
    ] {
        assert!(bench.run("x-pitstop-write", write(start, what.clone())).is_err(), "{start} {what}");
    }
    let missing = bench.fails("x-pitstop-write", json!({"name": "nope", "start": 0, "zeros": 512}));
    assert_eq!(missing.class, ErrorClass::DeviceNotFound);
    bench.run("block-export-add", add_arguments("busy")).unwrap();
    let connected = bench.fails("x-pitstop-write", write(0, json!({"zeros": 512})));
    assert!(connected.desc.contains("has a connected guest (export 'busy')"), "{}", connected.desc);
}

/// CTL-100, CTL-101
#[test]
fn relations_are_shown_and_split() {
    let bench = Bench::new();
    bench.run("x-pitstop-snapshot", json!({"source": "golden", "name": "ci"})).unwrap();
    let listed = bench.run("x-pitstop-query-volumes", json!({"name": "ci"})).unwrap();
    let expected = json!({"state": "real", "tracked": false, "kept-bytes": 0, "moved": null});
    assert_eq!(listed[0]["relation"], expected);
    let done = bench.run("x-pitstop-split", json!({"name": "ci"})).unwrap();
    assert_eq!((&done["volume"]["name"], &done["volume"]["relation"]["state"]), (&json!("ci"), &json!("split")));
    for name in ["ci", "golden"] {
        let refused = bench.context.target.container().split(name).unwrap_err().to_string();
        assert_eq!(bench.fails("x-pitstop-split", json!({"name": name})), Failure::generic(refused));
    }
    assert_eq!(bench.run("x-pitstop-query-volumes", json!({"name": "golden"})).unwrap()[0]["relation"], Value::Null);
}

/// CTL-35, CTL-52: the objects are those that the container's own types print.
#[test]
fn queries_return_what_the_container_tells() {
    let bench = Bench::new();
    let container = bench.context.target.container();
    let mut info = bench.run("x-pitstop-query-container", json!({})).unwrap();
    let space = info.as_object_mut().unwrap().remove("space").unwrap();
    let free = container.space().unwrap().free_bytes;
    assert!(space["available-bytes"].as_u64().unwrap() >= free && space["used-percent"].as_u64().unwrap() <= 100);
    assert_eq!(space["warning"], 80);
    assert_eq!(info, serde_json::to_value(container.info()).unwrap());
    let layers = bench.run("x-pitstop-query-layers", json!({})).unwrap();
    assert_eq!(layers, serde_json::to_value(container.layers()).unwrap());
    let volumes = bench.run("x-pitstop-query-volumes", json!({})).unwrap();
    assert_eq!(volumes, serde_json::to_value(container.volumes()).unwrap());
}

/// CTL-41, CTL-42
#[test]
fn snapshot_and_refresh_return_volume_and_time() {
    let bench = Bench::new();
    for (command, arguments) in [
        ("x-pitstop-snapshot", json!({"source": "golden", "name": "ci"})),
        ("x-pitstop-refresh", json!({"source": "golden", "name": "ci"})),
        ("x-pitstop-refresh", json!({"source": "golden", "name": "ci", "force": true})),
    ] {
        let result = bench.run(command, arguments).unwrap();
        assert_eq!(result["volume"]["name"], "ci");
        assert_eq!(result["volume"]["origin"]["name"], "golden");
        assert!(result["elapsed-us"].is_u64(), "{result}");
    }
}

fn action(source: &str, name: &str) -> Value {
    json!({"type": "x-pitstop-snapshot", "data": {"source": source, "name": name}})
}

/// CTL-56, CTL-57
#[test]
fn a_transaction_makes_all_copies_at_one_instant_or_none() {
    let bench = Bench::new();
    bench.run("x-pitstop-volume-create", json!({"name": "data", "size": 1 << 20})).unwrap();
    let actions = json!([action("golden", "g-1"), action("data", "d-1")]);
    let result = bench.run("transaction", json!({"actions": actions})).unwrap();
    let volumes = result["x-pitstop-volumes"].as_array().unwrap();
    assert_eq!((&volumes[0]["name"], &volumes[1]["name"]), (&json!("g-1"), &json!("d-1")));
    assert_eq!(volumes[0]["origin"]["instant-unix-ns"], volumes[1]["origin"]["instant-unix-ns"]);
    assert!(result["x-pitstop-elapsed-us"].is_u64(), "{result}");
    assert_eq!(bench.volume_names(), ["d-1", "data", "g-1", "golden"]);
    for mode in ["individual", "grouped"] {
        let properties = json!({"actions": [action("golden", mode)], "properties": {"completion-mode": mode}});
        assert!(bench.run("transaction", properties).is_ok());
    }
    let before = bench.volume_names();
    let failure = bench.fails("transaction", json!({"actions": [action("golden", "g-2"), action("nope", "n-2")]}));
    assert_eq!(failure.class, ErrorClass::DeviceNotFound);
    let failure = bench.fails("transaction", json!({"actions": [action("golden", "g-2"), action("data", "d-1")]}));
    assert!(failure.desc.contains("exists already"), "{failure:?}");
    let failure = bench.fails("transaction", json!({"actions": [action("golden", "g-2"), action("data", "g-2")]}));
    assert!(failure.desc.contains("a name of its own"), "{failure:?}");
    assert_eq!(bench.volume_names(), before);
    assert!(bench.run("transaction", json!({"actions": []})).is_ok(), "as QEMU does");
}

/// CTL-17, CTL-57: the texts are those of qemu-storage-daemon 10.0.
#[test]
fn a_transaction_of_other_actions_is_refused() {
    let bench = Bench::new();
    let good = action("golden", "g");
    for (arguments, desc) in [
        (json!({}), "Parameter 'actions' is missing"),
        (json!({"actions": {}}), "Invalid parameter type for 'actions', expected: array"),
        (json!({"actions": [good, 1]}), "Invalid parameter type for 'actions[1]', expected: object"),
        (json!({"actions": [{}]}), "Parameter 'actions[0].type' is missing"),
        (json!({"actions": [{"type": "x-pitstop-snapshot"}]}), "Parameter 'actions[0].data' is missing"),
        (
            json!({"actions": [good, {"type": "blockdev-backup", "data": {}}]}),
            "Parameter 'actions[1].type' does not accept value 'blockdev-backup'",
        ),
        (
            json!({"actions": [with(good.clone(), json!({"data": {"source": "golden"}}))]}),
            "Parameter 'actions[0].data.name' is missing",
        ),
        (
            json!({"actions": [with(good.clone(), json!({"data": {"source": 1, "name": "g"}}))]}),
            "Invalid parameter type for 'actions[0].data.source', expected: string",
        ),
        (json!({"actions": [with(good.clone(), json!({"zz": 1}))]}), "Parameter 'actions[0].zz' is unexpected"),
        (
            json!({"actions": [], "properties": {"completion-mode": "x"}}),
            "Parameter 'properties.completion-mode' does not accept value 'x'",
        ),
        (json!({"actions": [], "properties": {"zz": "x"}}), "Parameter 'properties.zz' is unexpected"),
    ] {
        assert_eq!(bench.fails("transaction", arguments), Failure::generic(desc));
    }
    assert_eq!(bench.volume_names(), ["golden"]);
}

/// CTL-42
#[test]
fn refresh_under_a_guest_needs_force() {
    let bench = Bench::new();
    bench.run("x-pitstop-snapshot", json!({"source": "golden", "name": "ci"})).unwrap();
    bench.run("block-export-add", with(add_arguments("busy"), json!({"node-name": "ci"}))).unwrap();
    let failure = bench.fails("x-pitstop-refresh", json!({"source": "golden", "name": "ci"}));
    assert!(failure.desc.contains("connected guest"), "{failure:?}");
    let arguments = json!({"source": "golden", "name": "ci", "force": true});
    assert!(bench.run("x-pitstop-refresh", arguments).is_ok());
}

/// CTL-150 to CTL-152
#[test]
fn views_are_made_and_ended() {
    let bench = Bench::new();
    let create = json!({"source": "golden", "name": "new"});
    let made = bench.run("x-pitstop-view-create", create.clone()).unwrap();
    assert_eq!((&made["volume"]["name"], &made["volume"]["view-of"]), (&json!("new"), &json!("golden")));
    assert!(made["elapsed-us"].is_u64());
    let volumes = bench.run("x-pitstop-query-volumes", json!({"name": "golden"})).unwrap();
    assert_eq!((&volumes[0]["viewed-by"], &volumes[0]["view-of"]), (&json!("new"), &Value::Null));
    let failure = bench.fails("x-pitstop-snapshot", json!({"source": "golden", "name": "copy"}));
    assert!(failure.desc.contains("pitstop view keep CONTAINER new"), "{failure:?}");
    let failure = bench.fails("x-pitstop-view-drop", json!({"name": "golden"}));
    assert!(failure.desc.contains("is no write-through view"), "{failure:?}");
    let kept = bench.run("x-pitstop-view-keep", json!({"name": "new"})).unwrap();
    assert_eq!(kept["volume"]["view-of"], Value::Null);
    bench.run("x-pitstop-volume-delete", json!({"name": "new"})).unwrap();
    bench.run("x-pitstop-view-create", create).unwrap();
    bench.run("block-export-add", add_arguments("busy")).unwrap();
    let failure = bench.fails("x-pitstop-view-drop", json!({"name": "new"}));
    assert!(failure.desc.contains("connected guest"), "{failure:?}");
    assert!(bench.run("x-pitstop-view-drop", json!({"name": "new", "force": true})).is_ok());
}

/// CTL-27
#[test]
fn a_closed_gate_refuses_every_command() {
    let bench = Bench::new();
    bench.context.close_gate();
    for (name, _) in COMMANDS {
        assert_eq!(bench.fails(name, json!({})), Failure::generic("the daemon is shutting down"), "{name}");
    }
}

/// CTL-45
#[test]
fn quit_asks_the_daemon_to_end() {
    let bench = Bench::new();
    assert_eq!(bench.context.run(request("quit", json!({}))), Ok(Done::Quit));
    assert!(!bench.target.is_shut_down(), "not before the reply");
    assert_eq!(bench.context.shutdown_reason(), "host-signal");
    bench.context.quit();
    assert!(bench.target.is_shut_down());
    assert_eq!(bench.context.shutdown_reason(), "host-qmp-quit");
}

// rule: CTL-48
#[test]
fn a_check_reports_what_the_command_would_and_ends_with_the_daemon() {
    let bench = Bench::new();
    let report = bench.run("x-pitstop-check", json!({})).unwrap();
    assert_eq!((&report["corruptions"], &report["volumes"]), (&json!(0), &json!(1)));
    assert_eq!(report["findings"], json!([]));
    let failure = bench.fails("x-pitstop-check", json!({"name": "golden"}));
    assert_eq!(failure.desc, "Parameter 'name' is unexpected");
    // A descriptor of a free slab, behind the daemon's back.
    let file = std::fs::OpenOptions::new().write(true).open(bench.target.folder.path().join("test.pit")).unwrap();
    let slab = file.metadata().unwrap().len() / (256 << 10) - 1;
    std::os::unix::fs::FileExt::write_all_at(&file, &[7], 2 * (256 << 10) + slab * 32 + 9).unwrap();
    let report = bench.run("x-pitstop-check", json!({})).unwrap();
    assert_eq!((&report["corruptions"], &report["findings"][0]["id"]), (&json!(1), &json!("CHK-2")));
    bench.context.close_gate();
    assert_eq!(bench.fails("x-pitstop-check", json!({})).desc, "the daemon is shutting down");
}

// rules: CTL-70 to CTL-72
#[test]
fn maps_and_differences_are_listed_in_steps() {
    let bench = Bench::new();
    let container = bench.context.target.container();
    let io = VolumeIo::new(container, container.volume("golden").unwrap());
    for block in [1, 3, 5] {
        io.write_at(&[1; 4096], block * 4096).unwrap();
    }
    container.create_volume("other", GOLDEN_BYTES).unwrap();
    let map = bench.run("x-pitstop-map", json!({"name": "golden"})).unwrap();
    assert_eq!(map, serde_json::to_value(container.map("golden", 0, Listing::Ranges(99)).unwrap()).unwrap());
    let data =
        json!({"start": 4096, "length": 4096, "valid": true, "modified": true, "to-copy": false, "content": "data"});
    assert_eq!((&map["ranges"][1], &map["next"]), (&data, &Value::Null));
    let step = bench.run("x-pitstop-map", json!({"name": "golden", "start": 4096, "limit": 2})).unwrap();
    assert_eq!((&step["ranges"][0], &step["next"]), (&data, &json!(3 * 4096)));
    let counts = bench.run("x-pitstop-map", json!({"name": "golden", "counts-only": true})).unwrap();
    assert_eq!((&counts["ranges"], &counts["counts"]["modified-bytes"]), (&json!([]), &json!(3 * 4096)));

    let step = bench.run("x-pitstop-diff", json!({"a": "golden", "b": "other", "limit": 1})).unwrap();
    let head = |name: &str| bench.run("x-pitstop-query-volumes", json!({"name": name})).unwrap()[0]["head"].clone();
    assert_eq!([&map["head"], &step["a-head"], &step["b-head"]], [&head("golden"), &head("golden"), &head("other")]);
    let range = json!({"start": 4096, "length": 4096, "changed-in": "a", "a": "data", "b": "zero"});
    assert_eq!((&step["ranges"], &step["next"]), (&json!([range]), &json!(3 * 4096)));
    let counts = bench.run("x-pitstop-diff", json!({"a": "other", "b": "golden", "counts-only": true})).unwrap();
    let bytes = 3 * 4096;
    let expected = json!({
        "bytes": bytes, "changed-in-a-bytes": 0, "changed-in-b-bytes": bytes, "a-data-bytes": 0, "b-data-bytes": bytes,
    });
    assert_eq!((&counts["counts"], &counts["next"]), (&expected, &Value::Null));

    let wrong = |more: Value| bench.fails("x-pitstop-map", with(json!({"name": "golden"}), more)).desc;
    assert_eq!(wrong(json!({"start": -1})), "Parameter 'start' expects uint64");
    assert_eq!(wrong(json!({"limit": 70000})), "Parameter 'limit' expects uint16_t");
    for limit in [0, 4097] {
        assert_eq!(wrong(json!({"limit": limit})), "limit must be from 1 to 4096");
    }
    let beyond = bench.run("x-pitstop-map", json!({"name": "golden", "start": u64::MAX})).unwrap();
    assert_eq!((&beyond["ranges"], &beyond["next"]), (&json!([]), &Value::Null));
    assert_eq!(bench.fails("x-pitstop-diff", json!({"a": "golden"})).desc, "Parameter 'b' is missing");
}
