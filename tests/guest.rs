//! Guests in QEMU on volumes of one container: what a person who runs CI virtual machines does.
//!
//! Small busybox guests; the demo does the same with a full Debian. Every guest checks what it
//! reads against hashes, and the container and the file systems in it are checked from outside.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use pitstop_tests::{
    Disk, Export, GoldenImage, OnReboot, Pitstop, Pitstopd, Qemu, QemuOptions, Queues, Scratch,
    assert_file_system_clean, file_in_image, sha256_of, write_pattern_file,
};

const GOLDEN_MIB: u64 = 96;

/// A container with `golden` and snapshots of it.
struct Setup {
    scratch: Scratch,
    pitstop: Pitstop,
}

impl Setup {
    fn new(name: &str, snapshots: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let golden = GoldenImage::make(&scratch, "golden", GOLDEN_MIB, "generation 1");
        let pitstop = Pitstop::on(scratch.file("disks.pit"));
        pitstop.run::<&str>("create", &[]);
        pitstop.run("import", &["golden", path_text(&golden.path)]);
        for name in snapshots {
            pitstop.run("snapshot", &["golden", name]);
        }
        pitstop.assert_clean();
        Self { scratch, pitstop }
    }

    fn socket(&self, volume: &str) -> PathBuf {
        self.scratch.socket(&format!("{volume}.sock"))
    }

    fn serve(&self, volumes: &[&str]) -> Pitstopd {
        let exports: Vec<Export> = volumes.iter().map(|volume| Export::writable(volume, self.socket(volume))).collect();
        Pitstopd::serve(&self.scratch, self.pitstop.container(), &exports)
    }

    /// Boots a guest on a volume, checks the file system before it is mounted, and mounts it.
    fn boot(&self, volume: &str) -> Qemu {
        let options = QemuOptions::busybox(volume, self.socket(volume));
        let mut guest = Qemu::boot(&self.scratch, &options);
        guest.sh("e2fsck -f -n /dev/vda");
        guest.sh("mount /dev/vda /mnt");
        guest
    }

    /// Checks the container as a crash of the daemon at this instant would leave it.
    fn assert_clean_as_after_a_crash(&self, daemon: &Pitstopd) {
        let copy = self.scratch.file("crash.pit");
        daemon.copy_container_at_once(self.pitstop.container(), &copy);
        Pitstop::on(&copy).assert_clean();
    }

    /// Exports a volume to a raw file.
    fn export(&self, volume: &str) -> PathBuf {
        let file = self.scratch.file(&format!("{volume}.exported.raw"));
        self.pitstop.run("export", &[volume, path_text(&file), "--force"]);
        file
    }

    /// The line in the file `version` of an unmounted volume, whose file system must be clean.
    fn version_of(&self, volume: &str) -> String {
        let image = self.export(volume);
        assert_file_system_clean(&image);
        let version = file_in_image(&self.scratch, &image, "/version");
        String::from_utf8_lossy(&version.expect("a golden image has a version")).trim().to_owned()
    }
}

fn path_text(path: &std::path::Path) -> &str {
    path.to_str().expect("the tests' paths are text")
}

fn assert_golden(guest: &mut Qemu, version: &str) {
    assert_eq!(guest.sh("cat /mnt/version"), version);
    guest.sh("cd /mnt && sha256sum -c data.sha256");
}

/// What a CI job does to its disk: adds, overwrites and removes files, and verifies them from
/// the disk, not from the guest's cache.
fn do_a_job(guest: &mut Qemu) {
    guest.sh("dd if=/dev/urandom of=/mnt/job bs=64k count=128 && cd /mnt && sha256sum job >job.sum");
    guest.sh("dd if=/dev/urandom of=/mnt/data/0 bs=4k count=64 conv=notrunc && rm /mnt/data/1");
    guest.sh("echo spoiled >/mnt/version && sha256sum /mnt/data/0 >/tmp/data.sum && sync");
    guest.sh("echo 3 >/proc/sys/vm/drop_caches");
    guest.sh("cd /mnt && sha256sum -c job.sum && sha256sum -c /tmp/data.sum");
}

/// Starts endless writing with verification; it stops when `/tmp/stop` appears and then leaves
/// the number of rounds in `/tmp/rounds`, or the word `damaged`.
fn start_writing(guest: &mut Qemu) {
    guest.sh("cat >/tmp/writer <<'END'
round=0
while [ ! -e /tmp/stop ]; do
    round=$((round + 1))
    file=/mnt/round-$((round % 8))
    dd if=/dev/urandom of=/tmp/new bs=64k count=8 2>/dev/null
    cp /tmp/new $file && sync
    echo 3 >/proc/sys/vm/drop_caches
    cmp /tmp/new $file || { echo damaged >/tmp/rounds; exit 1; }
    echo $round >/tmp/progress
done
echo $round >/tmp/rounds
END
sh /tmp/writer >/dev/null 2>&1 &");
}

fn rounds_so_far(guest: &mut Qemu) -> u32 {
    let text = guest.sh("[ ! -e /tmp/rounds ] && cat /tmp/progress || echo 0");
    text.parse().expect("a number of rounds")
}

/// Waits until the writer has done one more whole round, which shows that it goes on undamaged.
fn assert_still_writing(guest: &mut Qemu) {
    let before = rounds_so_far(guest);
    for _ in 0..300 {
        if rounds_so_far(guest) > before + 1 {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("the writer stopped after round {before}");
}

fn stop_writing(guest: &mut Qemu) {
    guest.sh("touch /tmp/stop; until [ -e /tmp/rounds ]; do sleep 0.1; done");
    let rounds = guest.sh("cat /tmp/rounds");
    assert_ne!(rounds, "damaged");
    assert_ne!(rounds, "0");
}

// req: R1 R2 R4 R5 R6 R29 R31
#[test]
fn refresh_takes_a_jobs_changes_back_and_brings_a_newer_golden_while_others_run() {
    let setup = Setup::new("guest-refresh", &["ci-1", "ci-2", "ci-3"]);
    let pitstop = &setup.pitstop;
    let daemon = setup.serve(&["golden", "ci-1", "ci-2", "ci-3"]);

    let mut job = setup.boot("ci-1");
    let mut neighbour = setup.boot("ci-2");
    assert_golden(&mut job, "generation 1");
    assert_golden(&mut neighbour, "generation 1");
    start_writing(&mut neighbour);
    do_a_job(&mut job);
    job.power_off();
    assert_still_writing(&mut neighbour);

    // A copy made before the refresh keeps the old contents (R5).
    pitstop.run("snapshot", &["ci-1", "ci-1-kept"]);
    pitstop.run("refresh", &["ci-1", "--source", "golden"]);
    setup.assert_clean_as_after_a_crash(&daemon);
    let mut job = setup.boot("ci-1");
    assert_golden(&mut job, "generation 1");
    assert_eq!(job.sh("ls -A /mnt | grep -c job || true"), "0");
    job.power_off();
    assert_still_writing(&mut neighbour);

    // A snapshot of a volume that is being written holds one instant: its journal replays.
    pitstop.run("snapshot", &["ci-2", "ci-2-instant"]);
    setup.assert_clean_as_after_a_crash(&daemon);
    assert_still_writing(&mut neighbour);

    // The newer golden reaches who is refreshed from it, and nobody else (R2, R4).
    let mut golden = setup.boot("golden");
    golden.sh("echo 'generation 2' >/mnt/version");
    golden.power_off();
    pitstop.run("refresh", &["ci-1", "--source", "golden"]);
    let mut job = setup.boot("ci-1");
    assert_golden(&mut job, "generation 2");
    let mut old = setup.boot("ci-3");
    assert_golden(&mut old, "generation 1");
    old.power_off();
    job.power_off();
    setup.assert_clean_as_after_a_crash(&daemon);

    stop_writing(&mut neighbour);
    neighbour.sh("cd /mnt && sha256sum -c data.sha256");
    neighbour.power_off();
    daemon.stop();
    pitstop.assert_clean();

    assert_eq!(setup.version_of("golden"), "generation 2");
    assert_eq!(setup.version_of("ci-1"), "generation 2");
    assert_eq!(setup.version_of("ci-2"), "generation 1");
    assert_eq!(setup.version_of("ci-3"), "generation 1");
    assert_eq!(setup.version_of("ci-1-kept"), "spoiled");

    // A refreshed volume's source may itself be a copy that was written since (R6).
    pitstop.run("refresh", &["ci-3", "--source", "ci-2"]);
    assert_eq!(sha256_of(&setup.export("ci-3")), sha256_of(&setup.export("ci-2")));
    let daemon = setup.serve(&["ci-2-instant"]);
    let options = QemuOptions::busybox("instant", setup.socket("ci-2-instant"));
    let mut instant = Qemu::boot(&setup.scratch, &options);
    instant.sh("mount /dev/vda /mnt && umount /mnt && e2fsck -f -n /dev/vda");
    instant.sh("mount /dev/vda /mnt");
    assert_golden(&mut instant, "generation 1");
    instant.power_off();
    daemon.stop();
    pitstop.assert_clean();
}

// req: R1 R3 R5 R7
#[test]
fn a_volume_refreshed_from_an_unrelated_one_takes_small_writes_at_once() {
    let scratch = Scratch::new("guest-unrelated");
    let pitstop = Pitstop::on(scratch.file("disks.pit"));
    pitstop.run::<&str>("create", &[]);
    for (volume, seed) in [("a", 11), ("b", 22)] {
        let file = scratch.file(volume);
        write_pattern_file(&file, 16 << 20, seed);
        pitstop.run("import", &[volume, path_text(&file)]);
    }
    pitstop.run("snapshot", &["b", "b-before"]);
    pitstop.run("refresh", &["b", "--source", "a"]);
    pitstop.run("snapshot", &["b", "b-after"]);

    // One sector in the middle of a block, and one that runs over the end of a chunk.
    let socket = scratch.socket("b");
    let daemon = Pitstopd::serve(&scratch, pitstop.container(), &[Export::writable("b", &socket)]);
    let mut guest = Qemu::boot(&scratch, &QemuOptions::busybox("small", &socket));
    guest.sh("dd if=/dev/urandom of=/tmp/new bs=512 count=3");
    guest.sh("dd if=/dev/vda of=/tmp/expected bs=1M");
    for (count, skip, seek) in [(1, 0, 3), (2, 1, 511)] {
        let range = format!("bs=512 count={count} skip={skip} seek={seek}");
        guest.sh(&format!("dd if=/tmp/new of=/dev/vda oflag=direct {range}"));
        guest.sh(&format!("dd if=/tmp/new of=/tmp/expected conv=notrunc {range}"));
    }
    guest.sh("sync; echo 3 >/proc/sys/vm/drop_caches");
    let expected = guest.sh("sha256sum </tmp/expected");
    assert_eq!(guest.sh("sha256sum </dev/vda"), expected);
    guest.power_off();
    daemon.stop();
    pitstop.assert_clean();

    let hash_of = |volume: &str| {
        let file = scratch.file(&format!("{volume}.exported"));
        pitstop.run("export", &[volume, path_text(&file), "--force"]);
        sha256_of(&file)
    };
    assert!(expected.starts_with(&hash_of("b")));
    assert_eq!(hash_of("a"), sha256_of(&scratch.file("a")));
    assert_eq!(hash_of("b-after"), hash_of("a"));
    assert_eq!(hash_of("b-before"), sha256_of(&scratch.file("b")));
}

// req: R29
#[test]
fn a_guest_reboots_resets_and_comes_back_while_the_daemon_stays() {
    let setup = Setup::new("guest-reboot", &["ci-1"]);
    let daemon = setup.serve(&["ci-1"]);
    let mut options = QemuOptions::busybox("ci-1", setup.socket("ci-1"));
    options.on_reboot = OnReboot::Boot;
    options.cpus = 2;
    let mut guest = Qemu::boot(&setup.scratch, &options);
    guest.sh("mount /dev/vda /mnt && echo before >/mnt/reboot && umount /mnt");
    guest.reboot();
    assert_eq!(guest.sh("mount /dev/vda /mnt && cat /mnt/reboot"), "before");

    // What was synced before a reset is there after it; the journal replays.
    guest.sh("echo synced >/mnt/reset && sync");
    guest.sh("dd if=/dev/zero of=/mnt/noise bs=64k count=200 2>/dev/null &");
    guest.reset();
    assert_eq!(guest.sh("mount /dev/vda /mnt && cat /mnt/reset"), "synced");
    guest.sh("umount /mnt && e2fsck -f -n /dev/vda");

    // A guest that vanishes, and a new one on the same socket.
    guest.sh("mount /dev/vda /mnt && echo synced >/mnt/cut && sync");
    guest.sh("dd if=/dev/zero of=/mnt/noise bs=64k count=200 2>/dev/null &");
    guest.cut_power();
    for _ in 0..2 {
        let mut next = Qemu::boot(&setup.scratch, &options);
        assert_eq!(next.sh("mount /dev/vda /mnt && cat /mnt/cut"), "synced");
        assert_golden(&mut next, "generation 1");
        next.power_off();
    }
    daemon.stop();
    setup.pitstop.assert_clean();
    assert_file_system_clean(&setup.export("ci-1"));
}

// req: R29
#[test]
fn four_virtual_cpus_use_four_queues_at_once() {
    let setup = Setup::new("guest-queues", &["ci-1"]);
    let daemon = setup.serve(&["ci-1"]);
    let mut options = QemuOptions::busybox("ci-1", setup.socket("ci-1"));
    options.cpus = 4;
    let mut guest = Qemu::boot(&setup.scratch, &options);
    assert_eq!(guest.sh("ls /sys/block/vda/mq | wc -l"), "4");
    assert!(!guest.sh("cat /sys/block/vda/serial").is_empty());
    // One writer on each CPU, with its own quarter of the disk, past the guest's cache.
    guest.sh("for cpu in 0 1 2 3; do
            (
                dd if=/dev/urandom of=/tmp/$cpu bs=64k count=64 2>/dev/null
                taskset $((1 << cpu)) dd if=/tmp/$cpu of=/dev/vda oflag=direct bs=16k seek=$((cpu * 1536)) &&
                taskset $((1 << cpu)) dd if=/dev/vda iflag=direct bs=16k skip=$((cpu * 1536)) count=256 |
                cmp - /tmp/$cpu && touch /tmp/done-$cpu
            ) &
        done
        wait");
    assert_eq!(guest.sh("ls /tmp | grep -c done-"), "4");
    guest.power_off();

    // The same volume with one queue, though the daemon offers more.
    options.disks = vec![Disk { socket: setup.socket("ci-1"), queues: Queues::Exactly(1) }];
    let mut guest = Qemu::boot(&setup.scratch, &options);
    assert_eq!(guest.sh("ls /sys/block/vda/mq | wc -l"), "1");
    guest.power_off();
    daemon.stop();
    setup.pitstop.assert_clean();
}

// req: R29
#[test]
fn a_read_only_export_is_read_and_cannot_be_written() {
    let setup = Setup::new("guest-readonly", &["ci-1"]);
    let before = sha256_of(&setup.export("golden"));
    let exports = [Export::read_only("golden", setup.socket("golden")), Export::writable("ci-1", setup.socket("ci-1"))];
    let daemon = Pitstopd::serve(&setup.scratch, setup.pitstop.container(), &exports);
    let mut options = QemuOptions::busybox("both", setup.socket("golden"));
    options.disks.push(Disk::at(setup.socket("ci-1")));
    let mut guest = Qemu::boot(&setup.scratch, &options);
    assert_eq!(guest.sh("cat /sys/block/vda/ro /sys/block/vdb/ro | xargs"), "1 0");
    let refused = guest.run("dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct");
    assert_ne!(refused.status, 0);
    guest.sh("mount -o ro /dev/vda /mnt && cd /mnt && sha256sum -c data.sha256 && cd / && umount /mnt");
    guest.sh("mount /dev/vdb /mnt && echo written >/mnt/version");
    guest.power_off();
    daemon.stop();
    assert_eq!(sha256_of(&setup.export("golden")), before);
    assert_eq!(setup.version_of("ci-1"), "written");
}

#[test]
fn refreshing_a_connected_volume_needs_force() {
    let setup = Setup::new("guest-force", &["ci-1"]);
    let daemon = setup.serve(&["ci-1"]);
    let mut guest = setup.boot("ci-1");
    guest.sh("echo job >/mnt/version && sync");
    let refused = setup.pitstop.fails("refresh", &["ci-1", "--source", "golden"]);
    assert!(refused.message.contains("--force"), "{}", refused.message);
    assert_eq!(guest.sh("echo 3 >/proc/sys/vm/drop_caches; cat /mnt/version"), "job");
    guest.sh("umount /mnt");
    setup.pitstop.run("refresh", &["ci-1", "--source", "golden", "--force"]);
    guest.sh("echo 3 >/proc/sys/vm/drop_caches; blockdev --flushbufs /dev/vda");
    guest.sh("mount /dev/vda /mnt");
    assert_golden(&mut guest, "generation 1");
    guest.power_off();
    setup.pitstop.run("refresh", &["ci-1", "--source", "golden"]);
    daemon.stop();
    setup.pitstop.assert_clean();
}

// req: R29
#[test]
fn discarded_and_zeroed_ranges_read_back_as_zeros_and_their_neighbours_stay() {
    let setup = Setup::new("guest-discard", &["ci-1"]);
    let daemon = setup.serve(&["ci-1"]);
    let mut guest = Qemu::boot(&setup.scratch, &QemuOptions::busybox("ci-1", setup.socket("ci-1")));
    assert_ne!(guest.sh("cat /sys/block/vda/queue/discard_max_bytes"), "0");
    assert_ne!(guest.sh("cat /sys/block/vda/queue/write_zeroes_max_bytes"), "0");
    guest.sh("dd if=/dev/urandom of=/tmp/expected bs=64k count=256");
    guest.sh("dd if=/tmp/expected of=/dev/vda oflag=direct bs=64k");
    // Whole chunks, whole blocks, and single sectors; over own data and over the golden's.
    for (offset, len) in [(0_u64, 262_144), (1_048_576, 4096), (3_145_728 + 512, 1024), (5_242_880 - 512, 525_312)] {
        guest.sh(&format!("/usr/bin/blkdiscard -o {offset} -l {len} /dev/vda"));
        // A discard zeroes the whole blocks in its range; those it covers in part stay.
        let (first, last) = (offset.next_multiple_of(4096), (offset + len) / 4096 * 4096);
        if first < last {
            zero_expected(&mut guest, first, last - first);
        }
    }
    for (offset, len) in [(8_388_608, 262_144), (9_437_184 + 4096, 8192), (11_534_336 - 1024, 266_752)] {
        guest.sh(&format!("/usr/bin/blkdiscard -z -o {offset} -l {len} /dev/vda"));
        zero_expected(&mut guest, offset, len);
    }
    guest.sh("echo 3 >/proc/sys/vm/drop_caches");
    guest.sh("dd if=/dev/vda bs=64k count=256 iflag=direct | cmp - /tmp/expected");
    let hash = guest.sh("sha256sum </tmp/expected");
    guest.power_off();
    daemon.stop();
    setup.pitstop.assert_clean();

    // After a restart the zeros are still zeros; the rest of the volume is the golden's.
    let daemon = setup.serve(&["ci-1"]);
    let mut guest = Qemu::boot(&setup.scratch, &QemuOptions::busybox("ci-1", setup.socket("ci-1")));
    assert_eq!(guest.sh("dd if=/dev/vda bs=64k count=256 2>/dev/null | sha256sum"), hash);
    guest.power_off();
    setup.pitstop.run("refresh", &["ci-1", "--source", "golden"]);
    let mut guest = setup.boot("ci-1");
    guest.sh("rm -r /mnt/data && sync && fstrim /mnt");
    guest.sh("umount /mnt && e2fsck -f -n /dev/vda");
    guest.power_off();
    daemon.stop();
    setup.pitstop.assert_clean();
    assert_file_system_clean(&setup.export("ci-1"));
    assert_eq!(setup.version_of("golden"), "generation 1");
}

fn zero_expected(guest: &mut Qemu, offset: u64, len: u64) {
    guest.sh(&format!(
        "dd if=/dev/zero of=/tmp/expected conv=notrunc bs=512 seek={} count={}",
        offset / 512,
        len / 512
    ));
}
