//! Random work of several queues on several hierarchies against a plain model, with crashes at every event of the disk.
//!
//! At every prefix of the disk's record, and for many subsets of the sectors that no sync has covered, the check is clean,
//! the container opens, and every sector of every volume shows what the promises of `spec/` allow. The work goes on from
//! crashes, also from crashes in recovery.
//!
//! req: R1, R2, R3, R4, R5, R6, R7, R8, R13, R24 to R28. Rules: JNL-1 to JNL-11, JNL-15, JNL-16, JNL-19, JNL-20, JNL-22,
//! JNL-23, MAP-1, MAP-6 to MAP-13, SNP-1 to SNP-7, SNP-10, SNP-22, LAY-5, LAY-8, LAY-11, LAY-12, LAY-30 to LAY-36, TAG-2 to
//! TAG-5, TAG-8, TAG-9, VOL-2, VOL-6, VOL-7, VOL-9 to VOL-11, VIEW-1 to VIEW-10, CHK-0.
//!
//! `PITSTOP_MODEL_SEEDS=first..end` chooses other seeds, each of which is a sequence of its own, `PITSTOP_MODEL_SECONDS=n`
//! stops after n seconds, `PITSTOP_MODEL_PLACES=n` judges crashes at n of 1000 places: `make crash-soak`, `make sequence-soak`.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unreachable_pub, reason = "one crate")]

#[path = "model/backup.rs"]
mod backup;
mod common;
#[path = "model/crashes.rs"]
mod crashes;
#[path = "model/request.rs"]
mod request;
#[path = "model/work.rs"]
mod work;
#[path = "model/world.rs"]
mod world;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crashes::Counts;
use world::Coverage;

/// Sequences of a CI run (not those whose volumes have come to be so large and deep that a state takes long), of how many of 1000 places crashes are judged, and the crash states that this must come to: disks
/// that differ from each other.
const SEEDS: [u64; 26] =
    [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 24, 25, 26, 27, 28];
const PLACES: u64 = 400;
const STATES: u64 = 100_000;

fn seeds() -> Option<Range<u64>> {
    let text = std::env::var("PITSTOP_MODEL_SEEDS").ok()?;
    let (first, end) = text.split_once("..").expect("PITSTOP_MODEL_SEEDS=first..end");
    Some(first.parse().unwrap()..end.parse().unwrap())
}

fn limit() -> Option<Duration> {
    let text = std::env::var("PITSTOP_MODEL_SECONDS").ok()?;
    Some(Duration::from_secs(text.parse().expect("PITSTOP_MODEL_SECONDS=n")))
}

fn places() -> Option<u64> {
    let text = std::env::var("PITSTOP_MODEL_PLACES").ok()?;
    Some(text.parse().expect("PITSTOP_MODEL_PLACES=n"))
}

#[test]
fn volumes_and_copies_survive_a_crash_at_every_write() {
    let (seeds, limit, places) = (seeds(), limit(), places());
    let soak = seeds.is_some() || limit.is_some() || places.is_some();
    let seeds: Vec<u64> = seeds.map_or_else(|| SEEDS.to_vec(), Iterator::collect);
    let places = places.unwrap_or(PLACES);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let sum = Mutex::new((0, Counts::default(), Coverage::default()));
    let since = Instant::now();
    let work = || {
        while !stop.load(Ordering::Relaxed) && limit.is_none_or(|limit| since.elapsed() < limit) {
            let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            match catch_unwind(AssertUnwindSafe(|| work::run(seed, places))) {
                Ok((counts, coverage)) => {
                    let mut sum = sum.lock().unwrap();
                    sum.0 += 1;
                    sum.1.add(counts);
                    sum.2.add(coverage);
                }
                Err(cause) => {
                    stop.store(true, Ordering::Relaxed);
                    eprintln!(
                        "seed {seed} failed; run it again with: PITSTOP_MODEL_SEEDS={seed}..{} PITSTOP_MODEL_PLACES={places} \
                         cargo test --package pitstop-format --test model",
                        seed + 1
                    );
                    resume_unwind(cause);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|cause| resume_unwind(cause));
        }
    });
    let (sequences, counts, mut coverage) = sum.into_inner().unwrap();
    let seconds = since.elapsed().as_secs_f64();
    println!(
        "{sequences} sequences in {seconds:.0} s: {:.1} a second. {} crash states judged ({} of them in recovery; {} pairs of \
         state and promises) at {} places: {:.0} a second",
        sequences as f64 / seconds,
        counts.distinct,
        counts.in_recovery,
        counts.judged,
        counts.places,
        counts.distinct as f64 / seconds
    );
    let few = sequences < SEEDS.len() as u64;
    for (what, count) in coverage.fields() {
        println!("  {count} {what}");
        assert!(few || *count > 0, "the workload no longer reaches: {what}");
    }
    println!("  {} bytes verified after crashes", counts.verified);
    assert!(few || counts.places == 0 || counts.verified > 0, "no crash state has tags");
    assert!(soak || counts.distinct >= STATES, "only {} crash states, {STATES} are promised", counts.distinct);
}
