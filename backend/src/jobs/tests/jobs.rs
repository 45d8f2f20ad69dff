//! Tests of the jobs on work that is not real: JOB-1 to JOB-8.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use pitstop_format::{CreateOptions, FileDisk, OpenMode, Planned, ReadPlan, Verify, VolumeIo};

use super::work::{JobKind, Step, Wait};
use super::*;

const TOTAL: u64 = 100 << 20;

/// Work that moves what it is told to, or does the next of `script`.
#[derive(Default)]
struct Fake {
    state: Mutex<FakeState>,
    /// While locked, steps do not end.
    gate: Mutex<()>,
    /// The next step, or order, panics.
    panics: AtomicBool,
}

#[derive(Default)]
struct FakeState {
    moved: u64,
    script: VecDeque<Step>,
    kept: Settings,
    void: bool,
    cancelled: bool,
    steps_begun: u64,
    /// What orders fail with.
    refuses: Option<String>,
}

impl Fake {
    fn lock(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap()
    }

    fn moved(&self) -> u64 {
        self.lock().moved
    }

    fn panic_if_told_to(&self) {
        assert!(!self.panics.swap(false, Ordering::SeqCst), "out of order");
    }
}

impl Work for Fake {
    fn kind(&self) -> JobKind {
        JobKind::Hydrate
    }

    fn look(&self) -> Option<Progress> {
        let state = self.lock();
        let (volume, current_bytes) = (Some("v".to_owned()), state.moved);
        (!state.void && !state.cancelled && state.moved < TOTAL).then_some(Progress {
            volume,
            current_bytes,
            total_bytes: TOTAL,
            ..Progress::default()
        })
    }

    fn step(&self, budget_bytes: u64) -> Step {
        self.panic_if_told_to();
        self.lock().steps_begun += 1;
        let _gate = self.gate.lock().unwrap();
        let mut state = self.lock();
        assert!(!state.kept.paused && !state.cancelled, "a step after an order that forbids it");
        if let Some(step) = state.script.pop_front() {
            return step;
        }
        let bytes = budget_bytes.min(TOTAL - state.moved);
        state.moved += bytes;
        if state.moved == TOTAL { Step::Complete } else { Step::Moved(bytes) }
    }

    fn keep(&self, settings: Settings) -> std::result::Result<(), String> {
        self.panic_if_told_to();
        let mut state = self.lock();
        if let Some(text) = &state.refuses {
            return Err(text.clone());
        }
        state.kept = settings;
        Ok(())
    }

    fn cancel(&self) -> std::result::Result<(), String> {
        self.lock().cancelled = true;
        Ok(())
    }
}

fn container_file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("test.pit")
}

fn new_container(folder: &tempfile::TempDir) -> Container {
    let disk = FileDisk::create(&container_file(folder)).unwrap();
    let options = CreateOptions { journal_len_bytes: 1 << 20, ..CreateOptions::default() };
    Container::create(disk.clone(), &options).unwrap();
    Container::open(disk, OpenMode::ReadWrite).unwrap()
}

struct Bench {
    jobs: Arc<Jobs>,
    turns: Option<Turns>,
    events: Receiver<Event>,
    _folder: tempfile::TempDir,
}

impl Bench {
    /// Without a thread that makes steps.
    fn idle() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let container = new_container(&folder);
        Self::with(container, folder)
    }

    fn with(container: Container, folder: tempfile::TempDir) -> Self {
        let events = Arc::new(Events::default());
        let receiver = events.subscribe();
        Bench { jobs: Jobs::new(container, events), turns: None, events: receiver, _folder: folder }
    }

    fn new() -> Self {
        let mut bench = Self::idle();
        bench.start();
        bench
    }

    fn start(&mut self) {
        self.turns = Some(Turns::start(&self.jobs, Arc::default()).unwrap());
    }

    fn add(&self, id: &str, settings: Settings, dismissal: Dismissal) -> Arc<Fake> {
        let fake = Arc::new(Fake::default());
        fake.lock().kept = settings;
        self.jobs.add(id.to_owned(), Arc::clone(&fake) as Arc<dyn Work>, settings, dismissal);
        fake
    }

    /// States that job `id` turned to, up to `last`.
    fn states(&self, id: &str, last: JobState) -> Vec<&'static str> {
        let mut states = Vec::new();
        loop {
            match self.events.recv_timeout(Duration::from_secs(20)).unwrap() {
                Event::JobStatusChanged { id: of, state } if of == id => {
                    states.push(state.word());
                    if state == last {
                        return states;
                    }
                }
                _ => {}
            }
        }
    }

    fn state(&self, id: &str) -> Option<JobState> {
        self.jobs.get(id).map(|job| job.state)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(turns) = self.turns.take() {
            turns.stop();
        }
    }
}

const SLOW: Settings = Settings { paused: false, speed: 8 << 20 };
const PAUSED: Settings = Settings { paused: true, speed: 0 };

fn wait_until(mut done: impl FnMut() -> bool) {
    for _ in 0..4000 {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("waited in vain");
}

/// rule: JOB-1
#[test]
fn a_job_turns_through_qemus_states_and_vanishes() {
    let bench = Bench::new();
    let fake = bench.add("a", Settings::default(), Dismissal::Auto);
    let expected = ["created", "running", "waiting", "pending", "concluded", "null"];
    assert_eq!(bench.states("a", JobState::Null), expected);
    assert_eq!(fake.moved(), TOTAL);
    assert_eq!(bench.jobs.list(), []);
    assert_eq!(bench.jobs.pause("a"), Err(JobError::NotFound));
}

/// rule: JOB-1
#[test]
fn a_job_that_is_not_dismissed_by_itself_stays_and_tells_how_it_ended() {
    let bench = Bench::new();
    bench.add("good", Settings::default(), Dismissal::ByOrder);
    bench.states("good", JobState::Concluded);
    let fake = bench.add("bad", SLOW, Dismissal::ByOrder);
    assert!(bench.jobs.dismiss("bad").unwrap_err().to_string().contains("cannot accept command verb 'dismiss'"));
    bench.jobs.cancel("bad").unwrap();
    assert!(fake.lock().cancelled);
    let jobs = bench.jobs.list();
    let ends: Vec<_> = jobs.iter().map(|job| (job.id.as_str(), job.state, job.error.as_deref())).collect();
    let expected = [("good", JobState::Concluded, None), ("bad", JobState::Concluded, Some("Operation canceled"))];
    assert_eq!(ends, expected);
    assert_eq!(jobs[0].progress.current_bytes, jobs[0].progress.total_bytes);
    let text = bench.jobs.pause("bad").unwrap_err().to_string();
    assert_eq!(text, "Job 'bad' in state 'concluded' cannot accept command verb 'pause'");
    assert_eq!(bench.jobs.resume("bad"), Err(JobError::NotPaused));
    for id in ["good", "bad"] {
        bench.jobs.dismiss(id).unwrap();
        assert_eq!(bench.jobs.dismiss(id), Err(JobError::NotFound));
    }
    assert_eq!(bench.jobs.list(), []);
}

/// rule: JOB-2, JOB-3
#[test]
fn nothing_is_moved_after_the_answer_to_a_pause() {
    let bench = Bench::new();
    let fake = bench.add("a", SLOW, Dismissal::Auto);
    assert_eq!(bench.jobs.resume("a"), Err(JobError::NotPaused));
    wait_until(|| fake.moved() > 0);
    bench.jobs.pause("a").unwrap();
    assert_eq!(fake.lock().kept, Settings { paused: true, ..SLOW });
    let moved = fake.moved();
    assert_eq!(bench.jobs.pause("a"), Err(JobError::AlreadyPaused));
    thread::sleep(Duration::from_millis(400));
    assert_eq!(fake.moved(), moved);
    let status = bench.jobs.get("a").unwrap();
    assert_eq!((status.state, status.progress.current_bytes, status.rate), (JobState::Paused, moved, 0));
    bench.jobs.resume("a").unwrap();
    wait_until(|| fake.moved() > moved);
    assert_eq!(fake.lock().kept, SLOW);
}

/// rule: JOB-3
#[test]
fn an_order_waits_for_the_step_under_way() {
    let bench = Bench::new();
    for order in [Jobs::pause, Jobs::cancel] {
        let fake = Arc::new(Fake::default());
        let gate = fake.gate.lock().unwrap();
        bench.jobs.add("a".to_owned(), Arc::clone(&fake) as Arc<dyn Work>, Settings::default(), Dismissal::Auto);
        wait_until(|| fake.lock().steps_begun == 1);
        thread::scope(|scope| {
            let ordered = scope.spawn(|| order(&bench.jobs, "a"));
            thread::sleep(Duration::from_millis(100));
            assert!(!ordered.is_finished());
            // Meanwhile others are answered.
            assert_eq!(bench.state("a"), Some(JobState::Running));
            drop(gate);
            ordered.join().unwrap().unwrap();
        });
        let steps = fake.lock().steps_begun;
        thread::sleep(Duration::from_millis(100));
        assert_eq!(fake.lock().steps_begun, steps);
        if bench.state("a").is_some() {
            bench.jobs.cancel("a").unwrap();
        }
        assert_eq!(bench.state("a"), None);
    }
}

/// rules: JOB-15, JOB-4
#[test]
fn a_step_that_panics_fails_its_job_alone() {
    let bench = Bench::new();
    let bad = Arc::new(Fake { panics: AtomicBool::new(true), ..Fake::default() });
    bench.jobs.add("bad".to_owned(), bad, Settings::default(), Dismissal::Auto);
    wait_until(|| bench.state("bad") == Some(JobState::Paused));
    assert_eq!(bench.jobs.get("bad").unwrap().error.as_deref(), Some("a defect of this program: out of order"));
    bench.add("good", Settings::default(), Dismissal::Auto);
    bench.states("good", JobState::Null);
    bench.jobs.resume("bad").unwrap();
    bench.states("bad", JobState::Null);
}

/// rule: JOB-15
#[test]
fn an_order_that_panics_holds_up_no_job() {
    let bench = Bench::idle();
    let fake = bench.add("a", PAUSED, Dismissal::Auto);
    fake.panics.store(true, Ordering::SeqCst);
    thread::scope(|scope| assert!(scope.spawn(|| bench.jobs.resume("a")).join().is_err()));
    bench.jobs.resume("a").unwrap();
    assert!(!bench.jobs.lock().jobs[0].held);
    fake.panics.store(true, Ordering::SeqCst);
    thread::scope(|scope| assert!(scope.spawn(|| bench.jobs.pause("a")).join().is_err()));
    assert!(!bench.jobs.lock().jobs[0].held, "its steps go on");
}

/// rule: JOB-1
#[test]
fn a_paused_job_that_is_cancelled_turns_as_in_qemu() {
    let bench = Bench::new();
    let fake = bench.add("a", PAUSED, Dismissal::Auto);
    bench.jobs.cancel("a").unwrap();
    let expected = ["created", "running", "paused", "running", "aborting", "concluded", "null"];
    assert_eq!(bench.states("a", JobState::Null), expected);
    assert_eq!(fake.moved(), 0);
}

/// rule: JOB-4
#[test]
fn a_job_that_fails_pauses_with_the_reason_and_can_be_resumed() {
    let mut bench = Bench::idle();
    let fake = bench.add("a", SLOW, Dismissal::Auto);
    fake.lock().script = VecDeque::from([Step::Failed("the disk is bad".to_owned())]);
    bench.start();
    assert_eq!(bench.states("a", JobState::Paused), ["created", "running", "paused"]);
    assert_eq!(bench.jobs.get("a").unwrap().error.as_deref(), Some("the disk is bad"));
    // A restart would try again: it was not told to pause.
    assert!(!fake.lock().kept.paused);
    bench.jobs.set_speed("a", 0).unwrap();
    assert!(!fake.lock().kept.paused);
    bench.jobs.resume("a").unwrap();
    assert_eq!(bench.states("a", JobState::Null), ["running", "waiting", "pending", "concluded", "null"]);
}

/// rule: JOB-7
#[test]
fn a_job_whose_volume_is_gone_ends_paused_or_not() {
    let bench = Bench::new();
    for settings in [PAUSED, SLOW] {
        let fake = bench.add("a", settings, Dismissal::Auto);
        fake.lock().void = true;
        fake.lock().script.push_back(Step::Void);
        // Whoever asks sees it at once, and the thread finds it too.
        if settings == PAUSED {
            assert_eq!(bench.jobs.list(), []);
        }
        let states = bench.states("a", JobState::Null);
        assert_eq!(states[states.len() - 4..], ["running", "aborting", "concluded", "null"]);
    }
}

/// rule: JOB-6
#[test]
fn a_limit_is_kept_and_can_be_lifted() {
    let bench = Bench::new();
    let fake = bench.add("a", Settings { paused: false, speed: 1 << 20 }, Dismissal::Auto);
    thread::sleep(Duration::from_millis(1000));
    assert!(fake.moved() > 0 && fake.moved() <= 2 << 20, "{} bytes in a second", fake.moved());
    bench.jobs.set_speed("a", 0).unwrap();
    assert_eq!(fake.lock().kept, Settings::default());
    wait_until(|| fake.moved() == TOTAL);
}

#[test]
fn jobs_take_turns() {
    let bench = Bench::new();
    let fakes: Vec<_> = ["a", "b", "c"].map(|id| bench.add(id, SLOW, Dismissal::Auto)).into();
    wait_until(|| fakes.iter().all(|fake| fake.moved() > 2 << 20));
    // One that is blocked holds up nobody.
    let blocked = Arc::new(Fake::default());
    blocked.lock().script = std::iter::repeat_n(Step::Blocked(Wait::Others), 1000).collect();
    bench.jobs.add("d".to_owned(), Arc::clone(&blocked) as Arc<dyn Work>, Settings::default(), Dismissal::Auto);
    let free = bench.add("e", Settings::default(), Dismissal::Auto);
    wait_until(|| free.moved() == TOTAL);
    assert_eq!(blocked.moved(), 0);
}

/// rule: JOB-2
#[test]
fn an_order_that_cannot_be_kept_is_refused_and_changes_nothing() {
    let bench = Bench::new();
    let fake = bench.add("a", SLOW, Dismissal::Auto);
    fake.lock().refuses = Some("no room".to_owned());
    for refused in [bench.jobs.pause("a"), bench.jobs.set_speed("a", 1)] {
        assert_eq!(refused, Err(JobError::NotKept("no room".to_owned())));
    }
    let job = bench.jobs.get("a").unwrap();
    assert_eq!((job.state, job.speed), (JobState::Running, SLOW.speed));
    let moved = fake.moved();
    wait_until(|| fake.moved() > moved);
}

/// rule: JOB-8
#[test]
fn jobs_that_nobody_dismisses_are_bounded() {
    let bench = Bench::idle();
    for index in 0..MOST_CONCLUDED + 10 {
        let id = format!("job-{index}");
        bench.add(&id, SLOW, Dismissal::ByOrder);
        bench.jobs.cancel(&id).unwrap();
    }
    let jobs = bench.jobs.list();
    assert_eq!((jobs.len(), jobs[0].id.as_str()), (MOST_CONCLUDED, "job-10"));
    assert_eq!(bench.states("job-0", JobState::Null).last(), Some(&"null"));
}

/// rule: JOB-9
#[test]
fn the_end_waits_for_one_step_at_most() {
    let mut bench = Bench::new();
    let fakes: Vec<_> = ["a", "b"].map(|id| bench.add(id, Settings::default(), Dismissal::Auto)).into();
    let gates: Vec<_> = fakes.iter().map(|fake| fake.gate.lock().unwrap()).collect();
    wait_until(|| fakes.iter().any(|fake| fake.lock().steps_begun > 0));
    let turns = bench.turns.take().unwrap();
    thread::scope(|scope| {
        let stopping = scope.spawn(|| turns.stop());
        thread::sleep(Duration::from_millis(100));
        assert!(!stopping.is_finished());
        drop(gates);
        stopping.join().unwrap();
    });
    assert_eq!(fakes.iter().map(|fake| fake.lock().steps_begun).sum::<u64>(), 1);
}

/// rule: JOB-1, JOB-3
#[test]
fn orders_from_many_threads_keep_to_the_arrows() {
    let bench = Bench::new();
    thread::scope(|scope| {
        for seed in 1..=4u64 {
            let bench = &bench.jobs;
            scope.spawn(move || {
                let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                for _ in 0..500 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let id = ["a", "b", "c"][(random >> 8) as usize % 3];
                    // Refusals are right answers here.
                    drop(match (random >> 16) % 12 {
                        0..4 => {
                            let speed = [0, 64 << 20][(random >> 24) as usize % 2];
                            let settings = Settings { paused: false, speed };
                            let dismissal = [Dismissal::Auto, Dismissal::ByOrder][(random >> 25) as usize % 2];
                            bench.add(id.to_owned(), Arc::new(Fake::default()), settings, dismissal);
                            Ok(())
                        }
                        4 | 5 => bench.pause(id),
                        6 | 7 => bench.resume(id),
                        8 => bench.cancel(id),
                        9 => bench.dismiss(id),
                        10 => bench.set_speed(id, 16 << 20),
                        _ => {
                            assert!(bench.list().len() <= 3 + MOST_CONCLUDED);
                            Ok(())
                        }
                    });
                }
            });
        }
    });
    for job in bench.jobs.list() {
        drop(bench.jobs.cancel(&job.id));
        drop(bench.jobs.dismiss(&job.id));
    }
    // Jobs of one name: each is created after the one before has ended.
    let mut states: std::collections::HashMap<String, JobState> = std::collections::HashMap::new();
    let mut told = 0;
    for event in bench.events.try_iter() {
        let Event::JobStatusChanged { id, state } = event else { continue };
        let before = states.insert(id.clone(), state);
        let is_edge = match (before, state) {
            (before, JobState::Created) => {
                before.is_none_or(|state| matches!(state, JobState::Null | JobState::Concluded))
            }
            // One of before, that waited for its dismissal.
            (Some(_), JobState::Null) => true,
            (Some(before), state) => state.follows(before) || before == JobState::Null,
            (None, _) => false,
        };
        assert!(is_edge, "{id} turned from {before:?} to {state:?}");
        told += 1;
    }
    assert!(told > 100, "{told} events");
}

/// Work that never pauses.
#[derive(Default)]
struct Busy(AtomicBool);

impl Work for Busy {
    fn kind(&self) -> JobKind {
        JobKind::Hydrate
    }

    fn look(&self) -> Option<Progress> {
        Some(Progress { total_bytes: TOTAL, ..Progress::default() })
    }

    fn step(&self, _: u64) -> Step {
        if self.0.load(Ordering::SeqCst) { Step::Complete } else { Step::Moved(1) }
    }

    fn keep(&self, _: Settings) -> std::result::Result<(), String> {
        Ok(())
    }

    fn cancel(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// rule: JOB-30 — one that a freeze has begun, and that nobody has looked at.
#[test]
fn a_sealing_is_taken_up_while_another_job_leaves_no_pause() {
    let bench = Bench::new();
    let busy = Arc::new(Busy::default());
    bench.jobs.add("busy".to_owned(), Arc::clone(&busy) as Arc<dyn Work>, Settings::default(), Dismissal::Auto);
    let container = &bench.jobs.container;
    container.create_volume("v", 1 << 20).unwrap();
    VolumeIo::new(container, container.volume("v").unwrap()).write_at(&[1; 4096], 0).unwrap();
    container.set_verify("v", Verify::Copy).unwrap();
    container.snapshot("v", "w").unwrap();
    wait_until(|| container.sealing_volumes().is_empty());
    busy.0.store(true, Ordering::SeqCst);
    wait_until(|| bench.state("busy").is_none());
}

/// rules: JOB-33, TAG-13 — a table page that is damaged stops the sealing of its chunks, not of what is frozen later.
#[test]
fn what_is_frozen_after_a_sealing_has_stopped_is_sealed_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let container = new_container(&folder);
    let write = |container: &Container, at: u64| {
        VolumeIo::new(container, container.volume("v").unwrap()).write_at(&[1; 4096], at).unwrap();
    };
    container.create_volume("v", 1 << 30).unwrap();
    write(&container, 0);
    container.snapshot("v", "w").unwrap();
    container.close().unwrap();
    let path = container_file(&folder);
    let open = || {
        let disk = FileDisk::open(&path, OpenMode::ReadWrite).unwrap();
        Container::open(disk, OpenMode::ReadWrite).unwrap()
    };
    let container = open();
    let page = match container.volume("w").unwrap().plan_read(0..512, &mut ReadPlan::default()).unwrap() {
        Planned::NeedPage(load) => load.offset(),
        other => panic!("{other:?}"),
    };
    let mut bytes = [0; 4096];
    container.disk().read_at(&mut bytes, page).unwrap();
    container.close().unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().write_all_at(&[!bytes[8]], page + 8).unwrap();
    let mut bench = Bench::with(open(), folder);
    bench.start();
    let container = bench.jobs.container.clone();
    let id = container.seal("v").unwrap();
    let job = format!("seal-{id}");
    wait_until(|| bench.state(&job) == Some(JobState::Paused));
    let passed = || container.sealing(id).unwrap().passed_bytes;
    assert_eq!(passed(), 0);
    for count in 1..=2 {
        // Another speed is no order to try again, and none to stay paused for ever.
        bench.jobs.set_speed(&job, 1 << 30).unwrap();
        assert_eq!(bench.state(&job), Some(JobState::Paused));
        write(&container, (512 << 20) * (count - 1));
        container.snapshot("v", &format!("later-{count}")).unwrap();
        wait_until(|| passed() == count * (256 << 10) && bench.state(&job) == Some(JobState::Paused));
        let error = bench.jobs.get(&job).unwrap().error.unwrap();
        assert!(error.contains("1 block or table page cannot be read"), "{error}");
    }
    // One that was told to pause stays paused.
    bench.jobs.pause(&job).unwrap();
    write(&container, 4096);
    container.snapshot("v", "last").unwrap();
    thread::sleep(Duration::from_millis(1500));
    assert_eq!((passed(), bench.state(&job)), (2 * (256 << 10), Some(JobState::Paused)));
    bench.jobs.resume(&job).unwrap();
    wait_until(|| passed() == 3 * (256 << 10) && bench.state(&job) == Some(JobState::Paused));
}
