//! Transfers against a plain copy of the file, with every alignment that a disk may ask for.

use std::fs::File;

use pitstop_format::{Disk, FileDisk, IoAlignment};

use super::super::buffers::cut_zeros;
use super::*;

const FILE_LEN: usize = 4 << 20;

struct Scene {
    transfers: Transfers,
    disk: Arc<FileDisk>,
    model: Vec<u8>,
    /// The guest's memory. Its pieces are at odd addresses where a test wants that.
    memory: Vec<u8>,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(memory: u32, offset: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let model: Vec<u8> = (0..FILE_LEN).map(|at| (at / 512 * 7 + at) as u8).collect();
        std::fs::write(&path, &model).unwrap();
        let disk = FileDisk::open(&path, pitstop_format::OpenMode::ReadWrite).unwrap();
        let buffered = Some(File::options().read(true).write(true).open(&path).unwrap());
        // Never less than what the disk asks for.
        let real = disk.io_alignment();
        let alignment = IoAlignment { memory: memory.max(real.memory), offset: offset.max(real.offset) };
        let data = DataDisk { disk: Arc::clone(&disk), buffered, alignment, activity: Arc::default() };
        let transfers = Transfers::new(Arc::new(data)).unwrap();
        Scene { transfers, disk, model, memory: vec![0; 2 << 20], _folder: folder }
    }

    fn piece(&mut self, at: usize, len: usize) -> iovec {
        let part = &mut self.memory[at..at + len];
        iovec { iov_base: part.as_mut_ptr().cast(), iov_len: len }
    }

    /// Runs all that was started to its end; returns what came back.
    fn finish(&mut self, started: usize) -> Vec<io::Result<Option<AlignedBuf>>> {
        let (mut results, mut completions) = (Vec::new(), Vec::new());
        while results.len() < started {
            self.transfers.submit().unwrap();
            self.transfers.ring().wait().unwrap();
            self.transfers.ring().take_completions(usize::MAX, &mut completions);
            for (id, result) in completions.drain(..) {
                results.extend(self.transfers.completed(id as usize, result).map(|finished| finished.result));
            }
        }
        assert_eq!((self.transfers.on_ring, self.transfers.bounces, self.transfers.backlog.len()), (0, 0, 0));
        results
    }

    fn run(&mut self, kind: Kind, pieces: Vec<iovec>, offset: u64) {
        let started = self.transfers.start(0, kind, pieces, offset);
        for result in self.finish(started) {
            result.unwrap();
        }
    }

    fn assert_file_is_model(&self) {
        let mut bytes = vec![0; FILE_LEN];
        self.disk.read_at(&mut bytes, 0).unwrap();
        assert!(
            bytes == self.model,
            "first difference at {:?}",
            bytes.iter().zip(&self.model).position(|(a, b)| a != b)
        );
    }
}

fn every_alignment(test: impl Fn(&mut Scene)) {
    for (memory, offset) in [(1, 1), (512, 512), (4096, 512), (512, 4096), (4096, 4096)] {
        test(&mut Scene::new(memory, offset));
    }
}

#[test]
fn reads_and_writes_of_any_shape() {
    every_alignment(|scene| {
        for (at, lens, offset) in [
            (0, &[4096][..], 4096u64),
            (1, &[512, 1024, 512], 512),
            (512, &[100, 412, 3584], 8192),
            (3, &[1 << 20], 1 << 20),
            (7, &[(1 << 20) - 512], 512),
        ] {
            let len: usize = lens.iter().sum();
            let cut = |scene: &mut Scene| {
                let mut start = at;
                lens.iter().map(|&len| (scene.piece(start, len), start += len).0).collect::<Vec<_>>()
            };
            let pieces = cut(scene);
            scene.run(Kind::Read, pieces, offset);
            let range = offset as usize..offset as usize + len;
            assert!(scene.memory[at..at + len] == scene.model[range.clone()]);
            for (index, byte) in scene.memory[at..at + len].iter_mut().enumerate() {
                *byte = (index * 3) as u8;
            }
            scene.model[range].copy_from_slice(&scene.memory[at..at + len]);
            let pieces = cut(scene);
            scene.run(Kind::Write, pieces, offset);
            scene.assert_file_is_model();
        }
    });
}

#[test]
fn edges_keep_the_rest_of_their_block() {
    every_alignment(|scene| {
        let bytes: Vec<u8> = (0..1024).map(|at| at as u8 ^ 0x55).collect();
        scene.memory[5..1029].copy_from_slice(&bytes);
        for (source, offset_in_block, to) in [(None, 512, 8192), (Some(4096), 3072, 16384), (Some(20480), 0, 20480)] {
            let pieces = vec![scene.piece(5, 500), scene.piece(505, 524)];
            scene.run(Kind::Edge { source, offset_in_block }, pieces, to as u64);
            let mut block = match source {
                Some(from) => scene.model[from as usize..from as usize + 4096].to_vec(),
                None => vec![0; 4096],
            };
            block[offset_in_block..offset_in_block + 1024].copy_from_slice(&bytes);
            scene.model[to..to + 4096].copy_from_slice(&block);
            scene.assert_file_is_model();
        }
    });
}

#[test]
fn many_bounced_transfers_take_turns() {
    let mut scene = Scene::new(4096, 512);
    let mut started = 0;
    for n in 0..200 {
        let piece = scene.piece(1 + n * 8192, 8192);
        started += scene.transfers.start(n, Kind::Read, vec![piece], n as u64 * 8192);
    }
    assert!(scene.finish(started).iter().all(Result::is_ok));
    assert!(scene.memory[1..1 + 200 * 8192] == scene.model[..200 * 8192]);
}

#[test]
fn zeros_syncs_pages_and_durable_writes() {
    every_alignment(|scene| {
        let mut zeros = Vec::new();
        cut_zeros(1 << 20, &mut zeros);
        scene.run(Kind::Write, zeros, 4096);
        scene.model[4096..4096 + (1 << 20)].fill(0);
        let piece = scene.piece(1, 8192);
        scene.run(Kind::WriteDurable, vec![piece], 0);
        scene.model[..8192].fill(0);
        scene.run(Kind::Sync, Vec::new(), 0);
        scene.assert_file_is_model();
        let started = scene.transfers.start(0, Kind::ReadPage, Vec::new(), 2 << 20);
        let page = scene.finish(started).pop().unwrap().unwrap().unwrap();
        assert!(page[..] == scene.model[2 << 20..(2 << 20) + 4096]);
    });
}

#[test]
fn reads_beyond_the_end_fail() {
    every_alignment(|scene| {
        let piece = scene.piece(0, 8192);
        let started = scene.transfers.start(0, Kind::Read, vec![piece], FILE_LEN as u64 - 4096);
        assert!(scene.finish(started).pop().unwrap().is_err());
    });
}
