//! Runs a scenario under many schedules, counts them, and says how to repeat one that failed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pitstop_format::Container;
use shuttle::rand::RngCore;
use shuttle::scheduler::{
    PctScheduler, RandomScheduler, ReplayScheduler, RoundRobinScheduler, Scheduler,
    UncontrolledNondeterminismCheckScheduler,
};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::world::{Image, World};

/// Schedules of each scenario, unless `PITSTOP_SCHEDULES` says otherwise.
const SCHEDULES: usize = 400;
/// A run that takes more steps than this goes round in circles.
const STEPS_MAX: usize = 400_000;
/// Preemptions of the hostile schedules, few and more.
const DEPTHS: [usize; 2] = [3, 12];

/// A choice among `count`, made by the schedule.
pub fn pick(count: u64) -> u64 {
    shuttle::rand::thread_rng().next_u64() % count
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

fn config() -> Config {
    let schedules = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("schedules");
    std::fs::create_dir_all(&schedules).unwrap();
    let mut config = Config::new();
    config.stack_size = 256 << 10;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.failure_persistence = FailurePersistence::File(Some(schedules));
    config.silence_warnings = true;
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    config
}

/// Explores `scenario`, each time on a container as `prepare` leaves it.
pub fn explore(name: &'static str, prepare: fn(&Container), scenario: fn(&World)) {
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    Runner::new(RoundRobinScheduler::new(1), config()).run(move || {
        *keep.lock().unwrap() = Some(Image::of(prepare));
    });
    let image = kept.lock().unwrap().take().unwrap();
    let body = Arc::new(move || scenario(&World::new(&image)));
    if let Ok(path) = std::env::var("PITSTOP_SCHEDULE") {
        let replay = ReplayScheduler::new_from_file(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        Runner::new(replay, config()).run(move || body());
        return;
    }
    let wanted = setting("PITSTOP_SCHEDULES").map_or(SCHEDULES, |count| count as usize);
    let seed = setting("PITSTOP_SEED").unwrap_or(1);
    assert!(wanted >= 8, "PITSTOP_SCHEDULES={wanted}: at least 8");
    let hostile = wanted / 4;
    let run = Run { name, wanted, begun: Arc::default() };
    run.explore(RandomScheduler::new_from_seed(seed, wanted - 2 * hostile), &body);
    run.explore(PctScheduler::new_from_seed(seed, DEPTHS[0], hostile), &body);
    run.explore(PctScheduler::new_from_seed(seed, DEPTHS[1], hostile), &body);
    let ran = run.begun.load(Ordering::Relaxed);
    assert_eq!(ran, wanted, "{name}: fewer schedules ran than were asked for");
    println!("{name}: {ran} schedules, seed {seed}");
    // Nothing but the schedule decides: a schedule that is repeated takes the same steps.
    let twice = RandomScheduler::new_from_seed(seed, 2);
    Runner::new(UncontrolledNondeterminismCheckScheduler::new(twice), config()).run(move || body());
}

struct Run {
    name: &'static str,
    wanted: usize,
    begun: Arc<AtomicUsize>,
}

impl Run {
    fn explore(&self, scheduler: impl Scheduler + 'static, body: &Arc<impl Fn() + Send + Sync + 'static>) {
        let (body, begun) = (body.clone(), self.begun.clone());
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            Runner::new(scheduler, config()).run(move || {
                begun.fetch_add(1, Ordering::Relaxed);
                body();
            })
        }));
        if let Err(panic) = outcome {
            let Self { name, wanted, begun } = self;
            eprintln!("{name}: schedule {} of {wanted} failed. To repeat it:", begun.load(Ordering::Relaxed));
            eprintln!("    make interleavings SCENARIO={name} SCHEDULE=FILE, with the first file named above");
            resume_unwind(panic);
        }
    }
}

/// A test that explores a scenario under the test's own name.
macro_rules! scenario {
    ($(#[$meta:meta])* $name:ident, $prepare:expr, $scenario:expr) => {
        $(#[$meta])*
        #[test]
        fn $name() {
            crate::explore::explore(stringify!($name), $prepare, $scenario);
        }
    };
}
pub(crate) use scenario;
