use pitstop_format::Verify;

use super::*;
use crate::maps::MapCountsView;
use crate::view::FindingView;

/// A volume of 20 GiB with 2 MiB of data; `origin` is the source's id, name and instant.
pub(crate) fn volume(id: u64, name: &str, origin: Option<(u64, &str, i64)>) -> VolumeView {
    VolumeView {
        id,
        name: name.to_owned(),
        uuid: format!("00000000-0000-4000-8000-{id:012}"),
        size_bytes: 20 << 30,
        created_unix_ns: 1_700_000_000_123_456_789,
        state: if origin.is_some() { StateView::Virtual } else { StateView::Real },
        hydration: None,
        durability: DurabilityView::Flush,
        undefined: false,
        verify: Verify::Off,
        sealing: None,
        relation: None,
        view_of: None,
        viewed_by: None,
        origin: origin.map(|(volume, name, instant_unix_ns)| OriginView {
            volume,
            name: name.to_owned(),
            instant_unix_ns,
        }),
        allocated_bytes: 2 << 20,
        head: id,
        depth: 2,
    }
}

#[test]
fn the_list_is_a_table() {
    let volumes = [volume(1, "golden", None), volume(2, "ci-1", Some((1, "golden", 1_700_000_000_000_000_000)))];
    assert_eq!(
        volume_table(&volumes),
        "NAME      SIZE    OWN  STATE    COPY OF  AS OF\n\
         golden  20 GiB  2 MiB  real     -        -\n\
         ci-1    20 GiB  2 MiB  virtual  golden   2023-11-14T22:13:20.000Z\n"
    );
    assert_eq!(volume_table(&[]), "no volumes; make one with `pitstop volume create` or `pitstop import`\n");
}

#[test]
fn a_volume_is_shown_with_its_layers() {
    let layer = LayerView {
        id: 12,
        kind: "head".into(),
        parent: Some(7),
        owner: Some(2),
        size_bytes: 20 << 30,
        allocated_bytes: 2 << 20,
        children: 0,
    };
    let below = LayerView { id: 7, kind: "frozen".into(), owner: Some(1), parent: None, children: 3, ..layer.clone() };
    let counts = MapCountsView {
        valid_bytes: 19 << 30,
        others_bytes: 1 << 30,
        modified_bytes: 4096,
        to_copy_bytes: 0,
        data_bytes: 3 << 30,
        own_data_bytes: 2 << 30,
        sealed_bytes: 0,
    };
    let map = MapTotals { size_bytes: 20 << 30, counts, valid_percent: 95 };
    assert_eq!(
        volume_block(&volume(2, "ci-1", Some((1, "golden", 0))), &map, None, &[layer, below]),
        "name:     ci-1\n\
         uuid:     00000000-0000-4000-8000-000000000002\n\
         size:     20 GiB (21474836480 bytes)\n\
         made:     2023-11-14T22:13:20.123Z\n\
         copy of:  golden\n\
         as of:    1970-01-01T00:00:00.000Z\n\
         state:    virtual\n\
         valid:    19 GiB (20401094656 bytes), 95 %\n\
         others':  1 GiB (1073741824 bytes)\n\
         modified: 4 KiB (4096 bytes)\n\
         own data: 2 MiB (2097152 bytes)\n\
         depth:    2\n\
         \n\
         LAYER  KIND    ALLOCATED  OWNER        CHILDREN\n   \
            12  head        2 MiB  this volume         0\n    \
             7  frozen      2 MiB  volume 1            3\n"
    );
}

#[test]
fn a_container_is_shown_as_a_block() {
    let mut container = ContainerView {
        uuid: "u".into(),
        label: "ci\x1b[31m".into(),
        version: 1,
        block_len_bytes: 4096,
        chunk_len_bytes: 256 << 10,
        file_len_bytes: 3 << 30,
        allocated_bytes: 2 << 30,
        free_bytes: 1 << 30,
        journal_len_bytes: 64 << 20,
        volume_count: 2,
        layer_count: 3,
        generation: 17,
        created_unix_ns: 0,
        failure: None,
    };
    let text = container_block(&container, None);
    assert!(text.contains("label:            ci\\u{1b}[31m\n"), "{text}");
    assert!(text.contains("file length:      3 GiB (3221225472 bytes)\n"), "{text}");
    assert!(text.contains("block, chunk:     4 KiB, 256 KiB\n"), "{text}");
    assert!(text.ends_with("generation:       17\n"), "{text}");
    container.label.clear();
    container.failure = Some("no space\n".into());
    let text = container_block(&container, Some("pitstopd (pid 7)"));
    assert!(
        text.ends_with("held by:          pitstopd (pid 7)\nfailed:           no space\\n\n")
            && !text.contains("label"),
        "{text}"
    );
}

#[test]
fn a_check_says_what_to_do() {
    let finding = |severity| FindingView {
        id: "CHK-18".into(),
        severity,
        place: "slab 9".into(),
        message: "has no owner".into(),
        rule: "ALC-3".into(),
    };
    let counts = serde_json::Map::new();
    let mut report = CheckView { findings: vec![], corruptions: 0, leaks: 0, notes: 0, counts };
    assert_eq!(check_text(&report), "no errors were found\n");
    report.findings.push(finding(SeverityView::Note));
    report.notes = 1;
    assert_eq!(check_text(&report), "note: slab 9: has no owner [CHK-18, ALC-3]\nno errors were found\n");
    report.findings = vec![finding(SeverityView::Leak)];
    (report.leaks, report.notes) = (1, 0);
    assert_eq!(
        check_text(&report),
        "leak: slab 9: has no owner [CHK-18, ALC-3]\n0 corruptions, 1 leak: space is lost, data is safe; \
         `pitstop check --repair leaks` gives the space back\n"
    );
    report.corruptions = 5000;
    let text = check_text(&report);
    assert!(
        text.ends_with(
            "and 5000 more\n5000 corruptions, 1 leak: repair it with `pitstop check --repair all`, or export what can be \
             read and restore the container from a copy\n"
        ),
        "{text}"
    );
    report.counts.insert("not-repaired".to_owned(), "cannot".into());
    let text = check_text(&report);
    assert!(text.contains("\ncannot\n") && !text.contains("--repair"), "{text}");
    let fixed = [("corruptions-fixed", 1u64), ("leaks-fixed", 2)];
    report.counts = fixed.into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect();
    report.counts.insert("repair-log".to_owned(), "log".into());
    let text = check_text(&report);
    assert!(text.contains("\nrepaired: 1 corruption, 2 leaks; what was there before is in log\n"), "{text}");
}

#[test]
fn a_result_line_names_source_and_instant() {
    assert_eq!(volume_line(&volume(1, "golden", None)), "golden: 20 GiB\n");
    assert_eq!(
        volume_line(&volume(2, "ci-1", Some((1, "golden", 1_000_000)))),
        "ci-1: 20 GiB, copy of golden as of 1970-01-01T00:00:00.001Z\n"
    );
}

#[test]
fn instants_of_any_value_are_shown() {
    assert_eq!(instant(-1_000_000), "1969-12-31T23:59:59.999Z");
    for extreme in [i64::MIN, i64::MAX] {
        assert!(instant(extreme).ends_with('Z'));
    }
}

#[test]
fn a_terminal_is_not_taken_over_by_names() {
    assert_eq!(printable("gold\x1b]0;x\x07en\n"), "gold\\u{1b}]0;x\\u{7}en\\n");
    assert_eq!(printable("a\u{202e}b\u{9b}c"), "a\\u{202e}b\\u{9b}c");
    assert_eq!(printable("größe 大 é"), "größe 大 é");
}

#[test]
fn jobs_are_a_table_with_percent_and_rate() {
    let job = |id: &str, kind: &str, volume: Option<&str>| JobView {
        id: id.to_owned(),
        kind: kind.to_owned(),
        status: "running".to_owned(),
        current_progress: 3 << 30,
        total_progress: 20 << 30,
        error: None,
        volume: volume.map(str::to_owned),
        speed: 0,
        rate: 0,
        waits_for_space: false,
        copied: 0,
        adopted: 0,
    };
    let jobs = [
        JobView { rate: 118 << 20, speed: 200 << 20, ..job("hydrate-17", "hydrate", Some("ci-1")) },
        JobView {
            status: "paused".to_owned(),
            error: Some("cannot read\u{1b}".to_owned()),
            ..job("hydrate-18", "hydrate", Some("ci-2"))
        },
        JobView { waits_for_space: true, ..job("hydrate-19", "hydrate", Some("ci-3")) },
        job("merge-5", "merge", None),
    ];
    assert_eq!(
        job_table(&jobs),
        "JOB         TYPE     VOLUME  STATE            DONE      OF       RATE      LIMIT\n\
         hydrate-17  hydrate  ci-1    running          15 %  20 GiB  118 MiB/s  200 MiB/s\n\
         hydrate-18  hydrate  ci-2    paused           15 %  20 GiB          -          -\n\
         hydrate-19  hydrate  ci-3    waits for space  15 %  20 GiB          -          -\n\
         merge-5     merge    -       running          15 %  20 GiB          -          -\n\
         hydrate-18: cannot read\\u{1b}\n"
    );
    assert_eq!(job_table(&[]), "no jobs\n");
}

#[test]
fn a_volume_that_is_hydrated_shows_how_far() {
    let hydration = Some(HydrationView { layer: 7, copied_bytes: 999, total_bytes: 1000 });
    let volume = VolumeView { state: StateView::Hydrating, hydration, ..volume(1, "ci", None) };
    assert_eq!(state(&volume), "hydrating 99 %");
    assert!(volume_table(&[volume]).contains("  hydrating 99 %  "));
}

#[test]
fn a_view_and_its_source_say_so() {
    let view = VolumeView { view_of: Some("disk".to_owned()), ..volume(2, "new", Some((1, "disk", 10))) };
    assert_eq!(state(&view), "virtual, view of disk");
    let source = VolumeView { viewed_by: Some("new\u{1b}".to_owned()), ..volume(1, "disk", None) };
    assert_eq!(state(&source), "real, viewed by new\\u{1b}");
    assert!(volume_table(&[view]).contains("  virtual, view of disk  "));
}
