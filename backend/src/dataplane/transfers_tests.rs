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
    memory: AlignedBuf,
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
        Scene { transfers, disk, model, memory: AlignedBuf::zeroed(2 << 20), _folder: folder }
    }

    fn piece(&mut self, at: usize, len: usize) -> iovec {
        let part = &mut self.memory[at..at + len];
        iovec { iov_base: part.as_mut_ptr().cast(), iov_len: len }
    }

    /// Runs all that was started to its end; returns what came back.
    fn finish(&mut self, started: usize) -> Vec<Result<Option<AlignedBuf>, RequestError>> {
        self.finish_all(started).into_iter().map(|finished| finished.result).collect()
    }

    /// The same, with the tasks that the transfers worked for.
    fn finish_all(&mut self, started: usize) -> Vec<Finished> {
        let (mut ended, mut completions) = (Vec::new(), Vec::new());
        while ended.len() < started {
            self.transfers.submit().unwrap();
            self.transfers.ring().wait().unwrap();
            self.transfers.ring().take_completions(usize::MAX, &mut completions);
            for (user_data, result) in completions.drain(..) {
                self.transfers.completed(user_data, result, &mut ended);
            }
        }
        assert_eq!((self.transfers.on_ring, self.transfers.bounced_len, self.transfers.backlog.len()), (0, 0, 0));
        ended
    }

    /// Starts a transfer of each of `places` (in memory, in the file, bytes), for tasks that count from 0, in pieces
    /// some of which are empty. Submits; on the ring are then `operations`.
    fn start_all(&mut self, kind: Kind, places: &[(usize, u64, usize)], operations: usize) {
        for (task, &(at, offset, len)) in places.iter().enumerate() {
            let pieces = vec![self.piece(at, 4096), self.piece(at, 0), self.piece(at + 4096, len - 4096)];
            assert_eq!(self.transfers.start(task, kind, pieces, offset), 1);
        }
        self.transfers.submit().unwrap();
        assert_eq!(self.transfers.on_ring, operations, "{kind:?} of {places:?}");
    }

    /// Waits for the one operation under way; what the kernel says of it.
    fn wait_for_one(&mut self) -> (u64, i32) {
        let mut completions = Vec::new();
        while completions.is_empty() {
            self.transfers.ring().wait().unwrap();
            self.transfers.ring().take_completions(usize::MAX, &mut completions);
        }
        assert_eq!(completions.len(), 1);
        completions[0]
    }

    /// The file has, and the model gets, the memory's bytes.
    fn assert_written(&mut self, places: &[(usize, u64, usize)]) {
        for &(at, offset, len) in places {
            self.model[offset as usize..][..len].copy_from_slice(&self.memory[at..at + len]);
        }
        self.assert_file_is_model();
    }

    fn assert_read(&self, places: &[(usize, u64, usize)]) {
        for &(at, offset, len) in places {
            assert!(self.memory[at..at + len] == self.model[offset as usize..][..len], "{len} bytes at {offset}");
        }
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

/// Four neighbours of different lengths, whose memory lies anywhere.
const NEIGHBOURS: [(usize, u64, usize); 4] =
    [(65536, 8192, 4096), (0, 12288, 8192), (131072, 20480, 4096), (32768, 24576, 4096)];
const NEIGHBOURS_LEN: i32 = 20480;

fn scribble(memory: &mut [u8]) {
    memory.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 512 * 11 + at) as u8);
}

fn tasks(ended: &[Finished]) -> Vec<usize> {
    assert!(ended.iter().all(|finished| finished.result.is_ok()));
    ended.iter().map(|finished| finished.task).collect()
}

#[test]
fn neighbours_go_as_one_operation() {
    let mut scene = Scene::new(1, 1);
    scene.start_all(Kind::Read, &NEIGHBOURS, 1);
    assert_eq!(tasks(&scene.finish_all(4)), [0, 1, 2, 3]);
    scene.assert_read(&NEIGHBOURS);
    scribble(&mut scene.memory);
    scene.start_all(Kind::Write, &NEIGHBOURS, 1);
    assert_eq!(tasks(&scene.finish_all(4)), [0, 1, 2, 3]);
    scene.assert_written(&NEIGHBOURS);
}

#[test]
fn neighbours_that_need_bounce_buffers_go_one_by_one() {
    let mut scene = Scene::new(1, 1);
    let places: Vec<_> = NEIGHBOURS.iter().map(|&(at, offset, len)| (at + 1, offset, len)).collect();
    let piece = scene.piece(1, 4096);
    if !scene.transfers.fits_memory(&[piece]) {
        scene.start_all(Kind::Read, &places, 4);
        assert_eq!(tasks(&scene.finish_all(4)).len(), 4);
        scene.assert_read(&places);
    }
}

#[test]
fn only_neighbours_of_one_kind_in_order_are_merged_and_not_too_many() {
    let mut scene = Scene::new(1, 1);
    for (kind, places, operations) in [
        (Kind::Read, &[(0, 8192, 4096), (8192, 16384, 4096)][..], 2),
        (Kind::Read, &[(0, 8192, 4096), (8192, 4096, 4096)], 2),
        (Kind::Read, &[(0, 8192, 8192), (16384, 12288, 4096)], 2),
        (Kind::WriteDurable, &[(0, 8192, 4096), (8192, 12288, 4096)], 2),
        (Kind::Write, &[(0, 0, 32768), (32768, 32768, 32768), (65536, 65536, 4096), (69632, 69632, 4096)], 2),
        (Kind::Write, &[(0, 0, 65536), (65536, 65536, 4096)], 2),
        (Kind::Write, &[(0, 0, 4096), (4096, 4096, 262_144), (266_240, 266_240, 4096)], 3),
    ] {
        scribble(&mut scene.memory);
        scene.start_all(kind, places, operations);
        assert_eq!(tasks(&scene.finish_all(places.len())).len(), places.len());
        if kind == Kind::Read { scene.assert_read(places) } else { scene.assert_written(places) }
    }
    let (read, write) = (scene.piece(0, 4096), scene.piece(4096, 4096));
    scene.transfers.start(0, Kind::Read, vec![read], 0);
    scene.transfers.start(1, Kind::Write, vec![write], 4096);
    scene.transfers.submit().unwrap();
    assert_eq!(scene.transfers.on_ring, 2);
    assert_eq!(tasks(&scene.finish_all(2)).len(), 2);
}

// rule: VOL-20
#[test]
fn what_a_merged_operation_did_not_move_is_done_one_by_one() {
    for (result, ended_at_once) in [
        (-libc::EIO, 0),
        (-libc::EAGAIN, 0),
        (0, 0),
        (512, 0),
        (4096, 1),
        (4096 + 8191, 1),
        (4096 + 8192, 2),
        (NEIGHBOURS_LEN - 1, 3),
    ] {
        for kind in [Kind::Read, Kind::Write] {
            let mut scene = Scene::new(1, 1);
            if kind == Kind::Write {
                scribble(&mut scene.memory);
            }
            scene.start_all(kind, &NEIGHBOURS, 1);
            let (user_data, real) = scene.wait_for_one();
            assert_eq!(real, NEIGHBOURS_LEN);
            let mut ended = Vec::new();
            scene.transfers.completed(user_data, result, &mut ended);
            assert_eq!(tasks(&ended), (0..ended_at_once).collect::<Vec<_>>(), "{kind:?} that gave {result}");
            for &(at, _, len) in &NEIGHBOURS[ended_at_once..] {
                if kind == Kind::Read {
                    scene.memory[at..at + len].fill(0);
                }
            }
            scene.transfers.submit().unwrap();
            assert_eq!(scene.transfers.on_ring, 4 - ended_at_once);
            let mut rest = tasks(&scene.finish_all(4 - ended_at_once));
            rest.sort_unstable();
            assert_eq!(rest, (ended_at_once..4).collect::<Vec<_>>());
            if kind == Kind::Read { scene.assert_read(&NEIGHBOURS) } else { scene.assert_written(&NEIGHBOURS) }
        }
    }
}

// rule: VOL-20
#[test]
fn of_neighbours_only_those_that_fail_alone_fail() {
    let mut scene = Scene::new(1, 1);
    let end = FILE_LEN as u64;
    let places = [(0, end - 8192, 4096), (4096, end - 4096, 4096), (8192, end, 4096), (12288, end + 4096, 4096)];
    scene.start_all(Kind::Read, &places, 1);
    let mut ended = scene.finish_all(4);
    ended.sort_by_key(|finished| finished.task);
    assert_eq!(ended.iter().map(|finished| finished.result.is_ok()).collect::<Vec<_>>(), [true, true, false, false]);
    scene.assert_read(&places[..2]);
}
