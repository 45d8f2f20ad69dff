//! Writes the bases that are not vectors of the specification: `cargo run --example bases` in `tests/fuzz`.
//!
//! Kept for the record: inputs of the corpus are changes of the files as they are, so existing ones are not written again.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use pitstop_format::testing::SimDisk;
use pitstop_format::{Container, CreateOptions, OpenMode, VolumeIo};

const GIB: u64 = 1 << 30;

fn dump(disk: &SimDisk) -> String {
    let bytes = disk.bytes();
    let mut text = format!("length {}\n", bytes.len());
    for (sector, offset) in bytes.chunks(512).zip((0..).step_by(512)) {
        if sector.iter().any(|byte| *byte != 0) {
            write!(text, "{offset} ").expect("text grows");
            sector.iter().for_each(|byte| write!(text, "{byte:02x}").expect("text grows"));
            text.push('\n');
        }
    }
    text
}

fn build(disk: &Arc<SimDisk>) -> pitstop_format::Result<Container> {
    let options = CreateOptions { journal_len_bytes: 256 << 10, label: "wide".to_owned() };
    Container::create(disk.clone(), &options)?;
    let container = Container::open(disk.clone(), OpenMode::ReadWrite)?;
    let io = |name: &str| container.volume(name).map(|volume| VolumeIo::new(&container, volume));
    container.create_volume("a", 5 * GIB)?;
    io("a")?.write_at(&[1; 512], 0)?;
    io("a")?.write_at(&[2; 512], 4 * GIB + (1 << 18))?;
    io("a")?.discard(2 * GIB..4 * GIB)?;
    container.snapshot("a", "b")?;
    io("b")?.write_at(&[3; 512], 512)?;
    container.snapshot("b", "c")?;
    io("c")?.write_at(&[4; 512], 1024)?;
    io("a")?.write_at(&[5; 512], 1 << 18)?;
    container.create_volume("small", GIB)?;
    io("small")?.write_at(&[6; 512], 0)?;
    container.snapshot("c", "d")?;
    container.snapshot("small", "e")?;
    container.refresh("e", "c")?;
    container.delete_volume("d")?;
    container.delete_volume("b")?;
    io("a")?.flush()?;
    Ok(container)
}

/// A view `b` of `a` over a copy that both show; what each wrote lies beside, over and within what the other did.
fn build_views(disk: &Arc<SimDisk>) -> pitstop_format::Result<Container> {
    let options = CreateOptions { journal_len_bytes: 256 << 10, label: "views".to_owned() };
    Container::create(disk.clone(), &options)?;
    let container = Container::open(disk.clone(), OpenMode::ReadWrite)?;
    let io = |name: &str| container.volume(name).map(|volume| VolumeIo::new(&container, volume));
    container.create_volume("a", 5 * GIB)?;
    io("a")?.write_at(&[1; 8192], 0)?;
    container.snapshot("a", "c")?;
    io("a")?.write_at(&[2; 512], 1 << 18)?;
    container.create_view("a", "b")?;
    io("a")?.write_at(&[3; 8192], 4096)?;
    io("a")?.write_at(&[4; 512], 1 << 19)?;
    io("b")?.write_at(&[5; 4096], 8192)?;
    io("b")?.write_at(&[6; 512], 4096 + 512)?;
    io("b")?.write_at(&[7; 512], 4 * GIB)?;
    io("a")?.discard(2 * GIB..4 * GIB)?;
    io("b")?.discard(1 << 18..(1 << 18) + 8192)?;
    io("c")?.write_at(&[8; 512], 0)?;
    io("b")?.flush()?;
    Ok(container)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bases");
    type Build = fn(&Arc<SimDisk>) -> pitstop_format::Result<Container>;
    let bases: [(&str, Build, bool); 4] = [
        ("wide-clean", build, true),
        ("wide-journal", build, false),
        ("views-clean", build_views, true),
        ("views-journal", build_views, false),
    ];
    for (name, build, clean) in bases {
        let path = folder.join(name).with_extension("txt");
        if path.exists() {
            continue;
        }
        let disk = SimDisk::new();
        let container = build(&disk)?;
        if clean {
            container.close()?;
        }
        std::fs::write(path, dump(&disk))?;
    }
    Ok(())
}
