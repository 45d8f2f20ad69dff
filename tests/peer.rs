//! The harness against QEMU's own vhost-user-blk export: guests boot, write, verify and power
//! off. When these fail, the machine or the harness is at fault, not the daemon.

use pitstop_tests::{
    GoldenImage, GuestKind, OnReboot, Qemu, QemuOptions, Scratch, StorageDaemon, assert_file_system_clean,
    file_in_image,
};

#[test]
fn a_guest_on_qemus_own_export_keeps_what_it_wrote() {
    let scratch = Scratch::new("peer");
    let golden = GoldenImage::make(&scratch, "golden", 64, "one");
    let socket = scratch.socket("disk");
    let daemon = StorageDaemon::serve(&scratch, &golden.path, &socket, 4);
    let mut options = QemuOptions::busybox("guest", &socket);
    assert_eq!(options.kind, GuestKind::Busybox);
    options.cpus = 4;
    options.on_reboot = OnReboot::Boot;
    let mut guest = Qemu::boot(&scratch, &options);
    assert_eq!(guest.sh("ls /sys/block/vda/mq | wc -l"), "4");
    guest.sh("e2fsck -f -n /dev/vda && mount /dev/vda /mnt");
    guest.sh("cd /mnt && sha256sum -c data.sha256");
    guest.sh("echo two > /mnt/version && sync");
    let refused = guest.run("echo three > /mnt/missing/version");
    assert_ne!(refused.status, 0);
    guest.reboot();
    assert_eq!(guest.sh("mount /dev/vda /mnt && cat /mnt/version"), "two");
    guest.sh("umount /mnt");
    guest.reset();
    guest.sh("mount /dev/vda /mnt");
    guest.power_off();
    daemon.stop();
    assert_file_system_clean(&golden.path);
    let version = file_in_image(&scratch, &golden.path, "/version");
    assert_eq!(version.as_deref(), Some(&b"two\n"[..]));
    assert_eq!(file_in_image(&scratch, &golden.path, "/missing"), None);
}
