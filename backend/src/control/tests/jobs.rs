//! Tests of the commands about jobs on a fake daemon whose jobs make no steps: CTL-80 to CTL-84.

use std::sync::Arc;

use pitstop_format::VolumeIo;
use serde_json::{Value, json};

use super::super::fake::FakeTarget;
use super::super::hub::Hub;
use super::super::protocol::{ErrorClass, Failure, Request};
use super::super::target::Target;
use super::*;

struct Bench {
    context: Context,
    target: Arc<FakeTarget>,
}

impl Bench {
    /// With the virtual volume `copy`.
    fn new() -> Self {
        let target = FakeTarget::new();
        let container = target.container();
        let golden = container.volume("golden").unwrap();
        VolumeIo::new(container, golden).write_at(&[7; 300 << 10], 0).unwrap();
        container.snapshot("golden", "copy").unwrap();
        Bench { context: Context::new(target.clone(), Arc::new(Hub::default())), target }
    }

    fn run(&self, command: &str, arguments: Value) -> Result<Value, Failure> {
        let Value::Object(arguments) = arguments else { panic!("arguments must be an object") };
        match self.context.run(Request { command: command.to_owned(), arguments })? {
            Done::Return(value) => Ok(value),
            Done::Quit => panic!("unexpected quit"),
        }
    }

    fn refusal(&self, command: &str, arguments: Value) -> String {
        let failure = self.run(command, arguments).unwrap_err();
        assert_eq!(failure.class, ErrorClass::Generic);
        failure.desc
    }

    fn hydrate(&self, more: &Value) -> String {
        let mut arguments = json!({"name": "copy"});
        arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.run("x-pitstop-volume-hydrate", arguments).unwrap()["job"]["id"].as_str().unwrap().to_owned()
    }

    fn jobs(&self) -> Value {
        self.run("query-jobs", json!({})).unwrap()
    }
}

/// CTL-80, CTL-83, CTL-84
#[test]
fn a_hydration_is_a_job_with_all_members() {
    let bench = Bench::new();
    assert_eq!(bench.jobs(), json!([]));
    let id = bench.hydrate(&json!({"speed": 5 << 20}));
    let layer = bench.target.container().hydrations()[0].layer;
    assert_eq!(id, format!("hydrate-{layer}"));
    let expected = json!({
        "id": id,
        "type": "hydrate",
        "status": "running",
        "current-progress": 0,
        "total-progress": bench.target.container().hydrations()[0].total_bytes,
        "x-pitstop-volume": "copy",
        "x-pitstop-speed": 5 << 20,
        "x-pitstop-rate": 0,
        "x-pitstop-waits-for-space": false,
        "x-pitstop-copied": 0,
        "x-pitstop-adopted": 0,
    });
    assert_eq!(bench.jobs(), json!([expected]));
    bench.run("x-pitstop-volume-rename", json!({"name": "copy", "new-name": "other"})).unwrap();
    assert_eq!((&bench.jobs()[0]["x-pitstop-volume"], &bench.jobs()[0]["id"]), (&json!("other"), &json!(id)));
    assert!(bench.refusal("x-pitstop-volume-hydrate", json!({"name": "other"})).contains("already"));
}

/// CTL-84
#[test]
fn what_cannot_be_hydrated_is_refused_or_needs_no_job() {
    let bench = Bench::new();
    let done = bench.run("x-pitstop-volume-hydrate", json!({"name": "golden"})).unwrap();
    assert_eq!(done, json!({"job": null}));
    let failure = bench.run("x-pitstop-volume-hydrate", json!({"name": "none"})).unwrap_err();
    assert_eq!(failure.class, ErrorClass::DeviceNotFound);
    for bad in [json!({}), json!({"name": "copy", "speed": -1}), json!({"name": "copy", "x": 1})] {
        bench.refusal("x-pitstop-volume-hydrate", bad);
    }
    assert_eq!(bench.jobs(), json!([]));
}

/// CTL-81: texts and states are those of qemu-storage-daemon 10.0.
#[test]
fn orders_are_taken_and_refused_as_qemu_does() {
    let bench = Bench::new();
    for command in ["job-pause", "job-resume", "job-cancel", "job-dismiss"] {
        assert_eq!(bench.refusal(command, json!({"id": "x"})), "Job not found");
        assert_eq!(bench.refusal(command, json!({})), "Parameter 'id' is missing");
    }
    let id = bench.hydrate(&json!({"auto-dismiss": false}));
    let with_id = json!({"id": id});
    let order = |command: &str| assert_eq!(bench.run(command, with_id.clone()).unwrap(), json!({}));
    let status = || bench.jobs()[0]["status"].clone();
    assert_eq!(bench.refusal("job-resume", with_id.clone()), "Can't resume a job that was not paused");
    order("job-pause");
    assert_eq!(status(), "paused");
    assert!(bench.target.container().hydrations()[0].paused);
    assert_eq!(bench.refusal("job-pause", with_id.clone()), "Job is already paused");
    let text = bench.refusal("job-dismiss", with_id.clone());
    assert_eq!(text, format!("Job '{id}' in state 'paused' cannot accept command verb 'dismiss'"));
    bench.run("x-pitstop-job-set-speed", json!({"id": id, "speed": 1000})).unwrap();
    assert_eq!((status(), &bench.jobs()[0]["x-pitstop-speed"]), (json!("paused"), &json!(1000)));
    let stored = &bench.target.container().hydrations()[0];
    assert_eq!((stored.paused, stored.speed), (true, 1000));
    order("job-resume");
    assert!(!bench.target.container().hydrations()[0].paused);
    order("job-cancel");
    assert_eq!((status(), &bench.jobs()[0]["error"]), (json!("concluded"), &json!("Operation canceled")));
    assert_eq!(bench.target.container().hydrations(), []);
    assert_eq!(bench.refusal("job-resume", with_id.clone()), "Can't resume a job that was not paused");
    let text = bench.refusal("job-pause", with_id.clone());
    assert_eq!(text, format!("Job '{id}' in state 'concluded' cannot accept command verb 'pause'"));
    order("job-dismiss");
    assert_eq!(bench.jobs(), json!([]));
}

/// JOB-7
#[test]
fn the_job_of_a_volume_that_is_gone_is_gone() {
    let bench = Bench::new();
    bench.hydrate(&json!({}));
    bench.run("x-pitstop-refresh", json!({"name": "copy", "source": "golden"})).unwrap();
    assert_eq!(bench.jobs(), json!([]));
    bench.hydrate(&json!({}));
    bench.run("x-pitstop-volume-delete", json!({"name": "copy"})).unwrap();
    assert_eq!(bench.jobs(), json!([]));
}

/// JOB-11, CTL-82
#[test]
fn upkeep_is_listed_and_takes_no_orders() {
    let bench = Bench::new();
    let container = bench.target.container();
    let volume = container.create_volume("big", 1 << 30).unwrap();
    let io = VolumeIo::new(container, container.volume("big").unwrap());
    io.write_at(&[1; 4096], 0).unwrap();
    container.snapshot("big", "old").unwrap();
    io.write_at(&[2; 4096], 4096).unwrap();
    container.snapshot("big", "new").unwrap();
    container.delete_volume("old").unwrap();
    // Step by step, through a merge.
    let mut seen = Vec::new();
    for _ in 0..200 {
        container.maintain().unwrap();
        for job in bench.jobs().as_array().unwrap().iter().filter(|job| job["type"] == "merge") {
            let id = job["id"].as_str().unwrap();
            assert!(id.starts_with("merge-"), "{id}");
            assert_eq!((&job["status"], &job["x-pitstop-volume"]), (&json!("running"), &json!(null)));
            let text = bench.refusal("job-pause", json!({"id": id}));
            let expected = format!("Job '{id}' in state 'running' cannot accept command verb 'pause': it is upkeep");
            assert!(text.starts_with(&expected), "{text}");
            assert_eq!(job["total-progress"], volume.size_bytes);
            seen.push(job["current-progress"].as_u64().unwrap());
        }
    }
    assert!(seen.len() >= 2 && seen.is_sorted() && seen[0] < seen[seen.len() - 1], "{seen:?}");
    assert_eq!(bench.jobs(), json!([]), "upkeep ends");
}
