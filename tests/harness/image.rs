//! Golden images for small guests, and what can be said of an image from outside: file systems
//! are checked and read by e2fsprogs, contents compared by hash.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::find::system_program;
use crate::process::run;
use crate::scratch::Scratch;

const DATA_FILES: u32 = 4;
const DATA_FILE_BYTES: u64 = 2 << 20;

/// A raw image with an ext4 file system: `version` (one line), `data/0` and so on with
/// `data.sha256`, which `sha256sum -c` checks.
#[derive(Debug)]
pub struct GoldenImage {
    /// The raw image.
    pub path: PathBuf,
    /// Its size in MiB.
    pub size_mib: u64,
}

impl GoldenImage {
    /// Makes it in the scratch folder, with `version` as the line in that file.
    pub fn make(scratch: &Scratch, name: &str, size_mib: u64, version: &str) -> Self {
        let content = scratch.file(&format!("{name}.content"));
        fs::create_dir_all(content.join("data")).expect("a folder can be made");
        fs::write(content.join("version"), format!("{version}\n")).expect("a file can be written");
        let mut sums = String::new();
        for index in 0..DATA_FILES {
            let file = content.join("data").join(index.to_string());
            write_pattern_file(&file, DATA_FILE_BYTES, u64::from(index) + 1);
            sums.push_str(&format!("{}  data/{index}\n", sha256_of(&file)));
        }
        fs::write(content.join("data.sha256"), sums).expect("a file can be written");
        let path = scratch.file(&format!("{name}.raw"));
        run(Command::new(system_program("mke2fs"))
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .arg(&content)
            .arg(&path)
            .arg(format!("{size_mib}M")));
        fs::remove_dir_all(&content).expect("a folder can be removed");
        Self { path, size_mib }
    }
}

/// Fills a file with bytes that do not repeat: a xorshift sequence from `seed`, which is not 0.
pub fn write_pattern_file(path: &Path, len_bytes: u64, seed: u64) {
    let file = File::create(path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
    let mut writer = BufWriter::new(file);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..len_bytes / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        writer.write_all(&state.to_le_bytes()).expect("a file can be written");
    }
    writer.flush().expect("a file can be written");
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256_of(path: &Path) -> String {
    let line = run(Command::new(system_program("sha256sum")).arg("--").arg(path));
    line.split_whitespace().next().unwrap_or_default().to_owned()
}

/// How much of the disk a file takes.
pub fn allocated_bytes(path: &Path) -> u64 {
    let metadata = fs::metadata(path).unwrap_or_else(|error| panic!("cannot look at {}: {error}", path.display()));
    metadata.blocks() * 512
}

/// Asserts that e2fsck finds nothing to repair in a raw image, and that it was unmounted.
pub fn assert_file_system_clean(image: &Path) {
    run(Command::new(system_program("e2fsck")).args(["-f", "-n"]).arg(image));
}

/// Contents of a file in the ext4 file system of a raw image; `None` when it is not there.
pub fn file_in_image(scratch: &Scratch, image: &Path, file: &str) -> Option<Vec<u8>> {
    let copy = scratch.file("file-in-image");
    if copy.exists() {
        fs::remove_file(&copy).expect("a file can be removed");
    }
    run(Command::new(system_program("debugfs")).arg("-R").arg(format!("dump {file} {}", copy.display())).arg(image));
    // debugfs exits with 0 also when there is no such file: then it writes none.
    fs::read(&copy).ok()
}
