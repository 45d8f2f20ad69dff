//! Load on one vhost-user-blk device, and what became of it.
//!
//! One thread keeps `depth` requests under way in each queue and sleeps on the queues' eventfds when nothing has
//! completed, as a guest's driver does (`--poll`: looks at the rings all the time). Requests, latencies and processor
//! time of the ramp are not counted.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::device::{Device, Kind, Slot, Target};
use crate::handover::HandOver;

mod pattern;
mod verify;

use pattern::Places;
pub(crate) use pattern::Random;
use verify::Verifier;

/// In which order blocks are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pattern {
    /// Any block at any time
    Random,
    /// From the first block to the last, over and over
    Sequential,
    /// Each block once, in random order; then the load ends
    Once,
}

/// What load to put on what.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The backend's vhost-user socket
    #[arg(long, required_unless_present = "file")]
    socket: Option<PathBuf>,
    /// No backend: hand the requests to another thread, which does them on this file
    #[arg(long, conflicts_with_all = ["socket", "queues"])]
    file: Option<PathBuf>,
    /// Queues to use
    #[arg(long, default_value_t = 1)]
    pub(crate) queues: usize,
    /// Requests under way in each queue
    #[arg(long, default_value_t = 32)]
    pub(crate) depth: usize,
    /// Bytes of a request, a multiple of 512
    #[arg(long, default_value_t = 4096)]
    pub(crate) block_size: u64,
    /// Order of blocks
    #[arg(long, value_enum, default_value = "random")]
    pub(crate) pattern: Pattern,
    /// Share of reads; the others are writes
    #[arg(long, default_value_t = 100)]
    pub(crate) read_percent: u64,
    /// A flush after each N writes; 0: none
    #[arg(long, default_value_t = 0)]
    pub(crate) flush_every: u64,
    /// Measured time
    #[arg(long, default_value_t = 2.0)]
    pub(crate) seconds: f64,
    /// Time before, which is not measured
    #[arg(long, default_value_t = 0.5)]
    pub(crate) ramp: f64,
    /// End after so many measured requests, if that is before the time is over
    #[arg(long)]
    pub(crate) requests: Option<u64>,
    /// First byte of the disk to use
    #[arg(long, default_value_t = 0)]
    pub(crate) offset: u64,
    /// Bytes of the disk to use; all that follow if not given
    #[arg(long)]
    pub(crate) range: Option<u64>,
    /// Look at the rings all the time instead of sleeping
    #[arg(long)]
    pub(crate) poll: bool,
    /// Compare what is read with what this process wrote there before
    #[arg(long)]
    pub(crate) verify: bool,
    /// Start of the random numbers
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Requests per second at most, evenly paced
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// The process whose processor time is measured too
    #[arg(long)]
    pub(crate) pid: Option<i32>,
}

/// Times of single requests in microseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Reads and writes.
    pub(crate) requests: u64,
    pub(crate) flushes: u64,
    pub(crate) seconds: f64,
    /// Reads and writes per second.
    pub(crate) iops: f64,
    pub(crate) mib_per_s: f64,
    /// Of reads and writes; with a flush after each write, of both together.
    pub(crate) latency_us: Latency,
    pub(crate) client_cpu_seconds: f64,
    pub(crate) backend_cpu_seconds: Option<f64>,
    /// Signals to the backend.
    pub(crate) kicks: u64,
    /// How often the client slept.
    pub(crate) wakes: u64,
    /// `time`, `requests` or `all blocks`.
    pub(crate) ended: String,
}

/// Runs the load and prints what was measured as one JSON object.
pub(crate) fn run(options: &Options) -> Result<()> {
    println!("{}", serde_json::to_string(&Load::new(options)?.run()?)?);
    Ok(())
}

/// A request under way.
#[derive(Clone, Copy)]
struct Request {
    kind: Kind,
    offset: u64,
    since: Instant,
}

struct Load<'a> {
    options: &'a Options,
    target: Box<dyn Target>,
    places: Places,
    random: Random,
    verifier: Option<Verifier>,
    requests: Vec<Option<Request>>,
    /// Slots without a request, for each queue.
    free: Vec<Vec<Slot>>,
    under_way: usize,
    /// Writes since the last flush was sent.
    unflushed: u64,
    /// With one request at a time, a write and its flush count as one.
    started: Option<Instant>,
    histogram: Histogram<u64>,
    done: u64,
    flushes: u64,
    wakes: u64,
    exhausted: bool,
}

/// What the clocks and counters said when the ramp was over.
struct Baseline {
    at: Instant,
    client_cpu: f64,
    backend_cpu: Option<f64>,
    kicks: u64,
}

impl<'a> Load<'a> {
    fn new(options: &'a Options) -> Result<Self> {
        let block = options.block_size;
        if block == 0
            || !block.is_multiple_of(512)
            || options.depth == 0
            || options.queues == 0
            || options.read_percent > 100
        {
            return Err("block size must be a multiple of 512, depth and queues at least 1, percent at most 100".into());
        }
        let descriptors = (options.depth * 3).next_power_of_two().clamp(128, 1024);
        if options.depth * 3 > descriptors {
            return Err("depth must be 341 at most".into());
        }
        let slots = options.depth * options.queues;
        let mut target: Box<dyn Target> = match (&options.socket, &options.file) {
            (Some(socket), _) => {
                Box::new(Device::connect(socket, options.queues, descriptors as u16, slots, block as usize)?)
            }
            (None, Some(file)) => Box::new(HandOver::open(file, slots, block as usize)?),
            (None, None) => return Err("neither a socket nor a file to put load on".into()),
        };
        let size = target.size();
        let end = options.range.map_or(size, |range| options.offset.saturating_add(range));
        if end > size || options.offset + block > end {
            return Err(format!("the disk has {size} bytes, which is less than the range asked for").into());
        }
        let mut random = Random::new(options.seed);
        for slot in 0..slots as Slot {
            random.fill(target.slot_bytes(slot));
        }
        let places = Places::new(options.pattern, options.offset, (end - options.offset) / block, block, &mut random);
        let of_queue =
            |queue: usize| (0..options.depth).rev().map(|n| (queue * options.depth + n) as Slot).collect::<Vec<_>>();
        Ok(Load {
            options,
            target,
            places,
            random,
            verifier: options.verify.then(|| Verifier::new(options.seed)),
            requests: vec![None; slots],
            free: (0..options.queues).map(of_queue).collect(),
            under_way: 0,
            unflushed: 0,
            started: None,
            histogram: Histogram::new_with_bounds(100, 100_000_000_000, 3)?,
            done: 0,
            flushes: 0,
            wakes: 0,
            exhausted: false,
        })
    }

    fn run(mut self) -> Result<Measured> {
        let begin = Instant::now();
        let ramp_end = begin + Duration::from_secs_f64(self.options.ramp);
        let mut baseline = None;
        let mut paced = 0u64;
        let ended = loop {
            let now = Instant::now();
            let base = match &baseline {
                None if now >= ramp_end => {
                    self.histogram.reset();
                    (self.done, self.flushes, self.wakes) = (0, 0, 0);
                    &*baseline.insert(self.baseline()?)
                }
                None => &Baseline { at: now, client_cpu: 0.0, backend_cpu: None, kicks: 0 },
                Some(base) => base,
            };
            let measured = now - base.at;
            if measured.as_secs_f64() >= self.options.seconds {
                break "time";
            }
            if self.options.requests.is_some_and(|most| self.done >= most) {
                break "requests";
            }
            if self.exhausted && self.under_way == 0 {
                break "all blocks";
            }
            let allowed = self.options.rate.map_or(u64::MAX, |rate| (begin.elapsed().as_secs_f64() * rate) as u64);
            let submitted = self.submit(allowed.saturating_sub(paced))?;
            paced += submitted;
            if self.take_completions()? == 0 && submitted == 0 {
                self.sleep()?;
            }
        };
        let base = match baseline {
            Some(base) => base,
            // All blocks were used up in the ramp: all of it is what there is.
            None => return Err("the ramp used all blocks: make it shorter or the range larger".into()),
        };
        let seconds = base.at.elapsed().as_secs_f64();
        let now = self.baseline()?;
        let (done, flushes, wakes) = (self.done, self.flushes, self.wakes);
        while self.under_way > 0 {
            if self.take_completions()? == 0 {
                self.sleep()?;
            }
        }
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        let at = |quantile| micros(self.histogram.value_at_quantile(quantile));
        Ok(Measured {
            requests: done,
            flushes,
            seconds,
            iops: done as f64 / seconds,
            mib_per_s: (done * self.options.block_size) as f64 / seconds / f64::from(1 << 20),
            latency_us: Latency {
                mean: self.histogram.mean() / 1000.0,
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: micros(self.histogram.max()),
            },
            client_cpu_seconds: now.client_cpu - base.client_cpu,
            backend_cpu_seconds: now.backend_cpu.zip(base.backend_cpu).map(|(now, before)| now - before),
            kicks: now.kicks - base.kicks,
            wakes,
            ended: ended.to_owned(),
        })
    }

    fn baseline(&self) -> Result<Baseline> {
        Ok(Baseline {
            at: Instant::now(),
            client_cpu: cpu_seconds(None)?,
            backend_cpu: self.options.pid.map(|pid| cpu_seconds(Some(pid))).transpose()?,
            kicks: self.target.kicks(),
        })
    }

    /// Fills the queues, with `allowed` requests at most; says how many were sent.
    fn submit(&mut self, allowed: u64) -> Result<u64> {
        let mut sent = 0;
        for queue in 0..self.free.len() {
            while sent < allowed
                && let Some(&slot) = self.free[queue].last()
            {
                let Some((kind, offset)) = self.next() else { break };
                self.free[queue].pop();
                self.send(queue, slot, kind, offset)?;
                sent += 1;
            }
            self.target.kick_if_wanted(queue)?;
        }
        Ok(sent)
    }

    /// What comes next; nothing if all blocks have been used, or everything waits.
    fn next(&mut self) -> Option<(Kind, u64)> {
        if self.options.flush_every > 0 && self.unflushed >= self.options.flush_every {
            self.unflushed = 0;
            return Some((Kind::Flush, 0));
        }
        let mut offset = self.places.next(&mut self.random);
        // Two requests for one block at a time have no order: with verification there are none.
        while let (Some(at), Some(verifier)) = (offset, &self.verifier)
            && verifier.is_busy(at)
        {
            offset = self.places.next(&mut self.random);
        }
        self.exhausted = offset.is_none();
        let offset = offset?;
        if self.random.below(100) < self.options.read_percent {
            return Some((Kind::Read, offset));
        }
        self.unflushed += 1;
        Some((Kind::Write, offset))
    }

    fn send(&mut self, queue: usize, slot: Slot, kind: Kind, offset: u64) -> Result<()> {
        if let Some(verifier) = &mut self.verifier {
            match kind {
                Kind::Write => verifier.begin_write(offset, self.target.slot_bytes(slot)),
                Kind::Read => verifier.begin_read(offset),
                Kind::Flush => {}
            }
        }
        let len = self.options.block_size as usize;
        self.target.send(queue, slot, kind, offset, len)?;
        self.requests[slot as usize] = Some(Request { kind, offset, since: Instant::now() });
        self.under_way += 1;
        Ok(())
    }

    fn take_completions(&mut self) -> Result<usize> {
        let mut ended = 0;
        for queue in 0..self.free.len() {
            while let Some((slot, result)) = self.target.take(queue) {
                if result != 0 {
                    return Err(format!("a request failed with errno {}", -result).into());
                }
                self.end(slot)?;
                self.free[queue].push(slot);
                ended += 1;
            }
        }
        Ok(ended)
    }

    fn end(&mut self, slot: Slot) -> Result<()> {
        let Some(request) = self.requests[slot as usize].take() else {
            return Err("the backend completed a request twice".into());
        };
        self.under_way -= 1;
        if let Some(verifier) = &mut self.verifier {
            match request.kind {
                Kind::Read => verifier.end_read(request.offset, self.target.slot_bytes(slot))?,
                Kind::Write => verifier.end_write(request.offset),
                Kind::Flush => {}
            }
        }
        // One at a time with a flush after each: the write's time goes on until its flush has ended.
        let together = self.options.flush_every == 1 && self.options.depth * self.options.queues == 1;
        let since = match request.kind {
            Kind::Write if together => {
                self.started = Some(request.since);
                self.done += 1;
                return Ok(());
            }
            Kind::Flush => {
                self.flushes += 1;
                match self.started.take() {
                    Some(since) => since,
                    None => return Ok(()),
                }
            }
            Kind::Read | Kind::Write => {
                self.done += 1;
                request.since
            }
        };
        self.histogram.saturating_record(since.elapsed().as_nanos() as u64);
        Ok(())
    }

    /// Waits for a completion, or for the time of the next paced request.
    fn sleep(&mut self) -> Result<()> {
        if self.options.poll {
            std::hint::spin_loop();
            return Ok(());
        }
        if self.under_way == 0 {
            std::thread::sleep(Duration::from_micros(100));
            return Ok(());
        }
        self.wakes += u64::from(self.target.sleep()?);
        Ok(())
    }
}

/// Processor time that a process (this one: `None`) and all its threads have used, in seconds.
pub(crate) fn cpu_seconds(pid: Option<i32>) -> Result<f64> {
    let mut clock = libc::CLOCK_PROCESS_CPUTIME_ID;
    if let Some(pid) = pid {
        // SAFETY: writes a clock id into a live variable.
        if unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } != 0 {
            return Err(format!("process {pid} does not exist").into());
        }
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes a time into a live variable.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}
