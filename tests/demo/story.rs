//! The steps of the demo, in order. Each prints what it does before it does it.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use pitstop_tests::{
    Export, Pitstop, Pitstopd, Qemu, QemuOptions, Scratch, allocated_bytes, assert_file_system_clean, file_in_image,
    guest_file, repository,
};

const VOLUMES: [&str; 4] = ["golden", "ci-1", "ci-2", "ci-3"];
const FIO_LIMIT: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;

/// Tells the whole story.
///
/// # Panics
/// When a promise does not hold.
pub(crate) fn run() {
    let mut story = Story::begin();
    story.make_volumes();
    let daemon = story.serve();

    story.step("Boot Debian from ci-1 and from ci-2, root=/dev/vda");
    let mut job = story.boot("ci-1");
    let mut neighbour = story.boot("ci-2");
    say(&format!("ci-1: Debian {}, Linux {}", job.sh("cat /etc/debian_version"), job.sh("uname -r")));
    start_writing(&mut neighbour);
    say("ci-2: fio writes and verifies from now on, without a break");
    story.spoil(&mut job);

    story.step("The job is over: power ci-1 off and refresh it, while ci-2 goes on");
    job.power_off();
    story.timed("refresh", &["ci-1", "--source", "golden"], "refresh ci-1");
    story.check_while_running(&daemon);
    let mut job = story.boot("ci-1");
    assert_eq!(job.run("ls /root/job /root/fio.data").status, 2, "the job's files are there");
    job.sh("dpkg --verify bash && [ -e /usr/bin/perl ]");
    say("ci-1: the job's files are gone, the removed program is back, fsck is clean");
    job.power_off();
    assert_still_writing(&mut neighbour);

    story.step("Snapshot ci-2 under its guest's writes");
    story.timed("snapshot", &["ci-2", "ci-2-instant"], "snapshot ci-2 while its guest writes");
    assert_still_writing(&mut neighbour);
    story.check_while_running(&daemon);

    story.renew_golden(&daemon);

    story.step("ci-2 was never disturbed");
    let rounds = stop_writing(&mut neighbour);
    say(&format!("ci-2: {rounds} rounds of fio, every block verified"));
    neighbour.power_off();
    daemon.stop();
    story.look_from_outside();
}

fn say(text: &str) {
    println!("    {text}");
}

struct Story {
    scratch: Scratch,
    pitstop: Pitstop,
    steps: u32,
    times: Vec<(String, Duration)>,
}

impl Story {
    fn begin() -> Self {
        println!("Pitstop: CI virtual machines, refreshed from a golden Debian in milliseconds");
        let scratch = Scratch::kept_at(repository().join("target/demo"));
        let pitstop = Pitstop::on(scratch.file("disks.pit"));
        Self { scratch, pitstop, steps: 0, times: Vec::new() }
    }

    fn step(&mut self, what: &str) {
        self.steps += 1;
        println!("\n{}. {what}", self.steps);
    }

    fn socket(&self, volume: &str) -> PathBuf {
        self.scratch.socket(&format!("{volume}.sock"))
    }

    /// Runs a verb and tells how long the whole command took.
    fn timed(&mut self, verb: &str, arguments: &[&str], what: &str) {
        let (_, time) = self.pitstop.timed(verb, arguments);
        say(&format!("pitstop {verb} disks.pit {}: {}", arguments.join(" "), milliseconds(time)));
        self.times.push((what.to_owned(), time));
    }

    fn check(&self) {
        self.pitstop.assert_clean();
        say("pitstop check: clean");
    }

    /// Checks the container as a crash of the daemon at this instant would leave it.
    fn check_while_running(&self, daemon: &Pitstopd) {
        let copy = self.scratch.file("crash.pit");
        daemon.copy_container_at_once(self.pitstop.container(), &copy);
        Pitstop::on(&copy).assert_clean();
        std::fs::remove_file(&copy).expect("the copy can be removed");
        say("pitstop check of the file as a crash right now would leave it: clean");
    }

    fn make_volumes(&mut self) {
        let image = guest_file("debian.raw");
        self.step("Import a Debian root file system as golden, and make three CI volumes of it");
        self.pitstop.run::<&str>("create", &[]);
        let (_, time) = self.pitstop.timed("import", &["golden", path_text(&image)]);
        let size = std::fs::metadata(&image).map_or(0, |metadata| metadata.len());
        say(&format!(
            "pitstop import disks.pit golden debian.raw: {} ({} MiB, {} MiB of data)",
            milliseconds(time),
            size / MIB,
            allocated_bytes(&image) / MIB
        ));
        for name in &VOLUMES[1..] {
            self.timed("snapshot", &["golden", name], &format!("snapshot {name}"));
        }
        self.check();
    }

    fn serve(&mut self) -> Pitstopd {
        self.step("Serve all four volumes with one daemon");
        let exports = VOLUMES.map(|volume| Export::writable(volume, self.socket(volume)));
        let daemon = Pitstopd::serve(&self.scratch, self.pitstop.container(), &exports);
        say("pitstopd disks.pit --export volume=ci-1,socket=ci-1.sock ...");
        daemon
    }

    /// Boots Debian from a volume; the file system is checked before it is mounted.
    fn boot(&self, volume: &str) -> Qemu {
        let start = Instant::now();
        let options = QemuOptions::debian(volume, self.socket(volume));
        let mut guest = Qemu::boot(&self.scratch, &options);
        let console = guest.console();
        assert!(console.contains("@@FSCK 0@@"), "fsck of {volume} is not clean:\n{console}");
        let root = guest.sh("awk '$2 == \"/\" { print $1 }' /proc/mounts | tail -n 1");
        say(&format!("{volume}: fsck clean, booted from {root} in {:.1} s", start.elapsed().as_secs_f64()));
        guest
    }

    /// What a CI job may do to its disk.
    fn spoil(&mut self, job: &mut Qemu) {
        self.step("A job in ci-1 writes files, removes a program, and runs fio with verification");
        job.sh("mkdir /root/job && cp -a /usr/lib/x86_64-linux-gnu /root/job && sync");
        job.sh("rm /usr/bin/perl && echo spoiled >/etc/motd");
        let start = Instant::now();
        job.sh_within(
            FIO_LIMIT,
            "fio --name=job --filename=/root/fio.data --size=48M --rw=randwrite --bs=4k \
             --ioengine=libaio --iodepth=16 --direct=1 --fsync=256 \
             --verify=crc32c --verify_fatal=1 --output=/root/fio.log",
        );
        say(&format!(
            "ci-1: fio wrote 48 MiB in random 4 KiB blocks and verified them, {:.1} s",
            start.elapsed().as_secs_f64()
        ));
    }

    fn renew_golden(&mut self, daemon: &Pitstopd) {
        self.step("Boot golden and change it");
        let mut golden = self.boot("golden");
        golden.sh("echo 'second edition' >/etc/motd && sync");
        golden.power_off();
        self.step("Refresh ci-1: it gets the newer golden, ci-3 keeps the older");
        self.timed("refresh", &["ci-1", "--source", "golden"], "refresh ci-1 from the newer golden");
        self.check_while_running(daemon);
        let mut renewed = self.boot("ci-1");
        assert_eq!(renewed.sh("cat /etc/motd"), "second edition");
        renewed.power_off();
        let mut old = self.boot("ci-3");
        assert_ne!(old.sh("cat /etc/motd"), "second edition");
        old.power_off();
        say("ci-1 shows the change, ci-3 does not");
    }

    fn look_from_outside(&mut self) {
        self.step("Everything from outside");
        self.check();
        for volume in VOLUMES {
            let image = self.scratch.file(&format!("{volume}.raw"));
            self.pitstop.run("export", &[volume, path_text(&image)]);
            assert_file_system_clean(&image);
            let motd = file_in_image(&self.scratch, &image, "/etc/motd").unwrap_or_default();
            let renewed = motd == b"second edition\n";
            assert_eq!(renewed, volume == "golden" || volume == "ci-1", "motd of {volume}");
            std::fs::remove_file(&image).expect("an export can be removed");
        }
        say("all four exported: e2fsck finds nothing");
        println!("\n{}", self.pitstop.run::<&str>("tree", &[]));
        println!("Milliseconds, for the whole command:");
        for (what, time) in &self.times {
            println!("  {:>10}  {what}", milliseconds(*time));
        }
        let container = self.pitstop.container();
        println!("\nAll promises held. The container: {}", container.display());
    }
}

/// Endless fio with verification, a round after the other, until `/run/stop` appears.
fn start_writing(guest: &mut Qemu) {
    guest.sh("cat >/run/writer <<'END'
round=0
while [ ! -e /run/stop ]; do
    fio --name=neighbour --filename=/root/neighbour.data --size=8M --rw=randwrite --bs=4k \\
        --ioengine=libaio --iodepth=4 --direct=1 --verify=crc32c --verify_fatal=1 \\
        --output=/run/fio.log || { echo damaged >/run/result; exit 1; }
    round=$((round + 1))
    echo $round >/run/progress
done
echo $round >/run/result
END
sh /run/writer >/run/writer.log 2>&1 &");
}

fn rounds_so_far(guest: &mut Qemu) -> u32 {
    let text = guest.sh("cat /run/result /run/progress 2>/dev/null | tail -n 1");
    assert_ne!(guest.run("grep -q damaged /run/result").status, 0, "ci-2 read damaged data");
    text.parse().unwrap_or(0)
}

/// Waits until the writer has done one more whole round.
fn assert_still_writing(guest: &mut Qemu) {
    let before = rounds_so_far(guest);
    let start = Instant::now();
    while rounds_so_far(guest) <= before + 1 {
        assert!(start.elapsed() < FIO_LIMIT, "ci-2 stopped writing after round {before}");
        thread::sleep(Duration::from_millis(250));
    }
    say(&format!("ci-2: still writing and verifying, round {}", before + 2));
}

fn stop_writing(guest: &mut Qemu) -> u32 {
    guest.sh_within(FIO_LIMIT, "touch /run/stop; until [ -e /run/result ]; do sleep 0.2; done");
    rounds_so_far(guest)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("the demo's paths are text")
}
