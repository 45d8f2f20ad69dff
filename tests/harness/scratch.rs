//! A folder for one test's files, and one with a short path for its sockets.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use tempfile::TempDir;

use crate::find::repository;

/// Folders of one test. Both are removed when the test passes; when it fails, the files stay and
/// their place is printed.
#[derive(Debug)]
pub struct Scratch {
    files: Option<TempDir>,
    files_path: PathBuf,
    sockets: TempDir,
}

impl Scratch {
    /// Folders for the test called `name`.
    pub fn new(name: &str) -> Self {
        // In the target folder, which lies on a real disk: a tmpfs has no O_DIRECT.
        let parent = repository().join("target/test-files");
        Self::in_folder(&parent, name)
    }

    /// The folder `folder`, emptied first, whose files stay: for the demo.
    pub fn kept_at(folder: PathBuf) -> Self {
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap_or_else(|error| panic!("cannot empty {}: {error}", folder.display()));
        }
        fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
        Self { files: None, files_path: folder, sockets: socket_folder() }
    }

    fn in_folder(parent: &Path, name: &str) -> Self {
        fs::create_dir_all(parent).unwrap_or_else(|error| panic!("cannot make {}: {error}", parent.display()));
        let files = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir_in(parent)
            .expect("the test's folder can be made");
        Self { files_path: files.path().to_path_buf(), files: Some(files), sockets: socket_folder() }
    }

    /// Path of a file of this test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files_path.join(name)
    }

    /// Path of a socket of this test.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets.path().join(name)
    }

    /// The folder of the files.
    pub fn folder(&self) -> &Path {
        &self.files_path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking()
            && let Some(files) = self.files.take()
        {
            eprintln!("the test's files are kept in {}", files.keep().display());
        }
    }
}

/// A socket's path holds 107 bytes at most, which a deep clone would exceed.
fn socket_folder() -> TempDir {
    tempfile::Builder::new().prefix("pitstop-").tempdir().expect("the sockets' folder can be made")
}
