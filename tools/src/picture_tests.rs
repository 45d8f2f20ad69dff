use super::*;
use crate::hierarchy::hierarchies;
use crate::maps::MapCountsView;
use crate::render::tests::volume;

const INSTANT: i64 = 1_700_000_000_000_000_000;

fn layer(id: u64, parent: Option<u64>, owner: Option<u64>, allocated_bytes: u64, children: u32) -> (u64, LayerView) {
    let kind = if children == 0 { "head" } else { "frozen" }.to_owned();
    (id, LayerView { id, kind, parent, owner, size_bytes: 20 << 30, allocated_bytes, children })
}

/// A map of a volume of 20 GiB.
fn map(own_data_bytes: u64, others_bytes: u64, modified_bytes: u64) -> MapTotals {
    let size_bytes = 20 << 30;
    let data_bytes = own_data_bytes + others_bytes;
    let valid_bytes = size_bytes - others_bytes;
    let counts = MapCountsView {
        valid_bytes,
        others_bytes,
        modified_bytes,
        to_copy_bytes: 0,
        data_bytes,
        own_data_bytes,
        sealed_bytes: 0,
    };
    MapTotals { size_bytes, counts, valid_percent: 0 }
}

fn draw(roots: &[Node], layers: &HashMap<u64, LayerView>, maps: &HashMap<u64, MapTotals>) -> String {
    let svg = Picture { label: "ci-host-7", lines: &lines(roots), layers, maps }.draw();
    assert_is_xml(&svg);
    svg
}

/// Every element is closed by its own end, and no character stands where XML would take it for something else.
fn assert_is_xml(text: &str) {
    let mut open = Vec::new();
    let mut rest = text;
    while let Some((before, tag)) = rest.split_once('<') {
        assert_is_content(before);
        let (tag, after) = tag.split_once('>').unwrap();
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "…{before}");
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        assert!(tag.starts_with(|c: char| c.is_ascii_lowercase()) && !tag.contains(['&', '<']), "{tag}");
        if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap());
        }
    }
    assert!(open.is_empty() && rest == "\n", "{open:?} {rest}");
}

fn assert_is_content(text: &str) {
    for part in text.split('&').skip(1) {
        let name = part.split_once(';').unwrap_or_else(|| panic!("& in {text}")).0;
        assert!(["amp", "lt", "gt", "quot", "apos"].contains(&name), "{text}");
    }
    assert!(!text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{fffe}'), "{text:?}");
}

/// Two hierarchies; layers 1 and 2 are shared.
fn scene() -> (Vec<Node>, HashMap<u64, LayerView>, HashMap<u64, MapTotals>) {
    let mut volumes = vec![
        volume(1, "golden", None),
        volume(2, "ci-1", Some((1, "golden", INSTANT))),
        volume(3, "ci-2", Some((1, "golden", INSTANT))),
        volume(4, "before", Some((2, "ci-1", INSTANT))),
        volume(5, "scratch", None),
    ];
    let stored = [(10, 1, 8 << 30), (11, 2, 3 << 30), (12, 1, 0), (13, 2, 256 << 10), (14, 0, 20 << 30)];
    for (volume, (head, depth, allocated_bytes)) in volumes.iter_mut().zip(stored) {
        (volume.head, volume.depth, volume.allocated_bytes) = (head, depth, allocated_bytes);
    }
    let layers = [
        layer(1, None, Some(1), 8 << 30, 3),
        layer(2, Some(1), Some(2), 2 << 30, 2),
        layer(10, Some(1), Some(1), 0, 0),
        layer(11, Some(2), Some(2), 1 << 30, 0),
        layer(12, Some(1), Some(3), 0, 0),
        layer(13, Some(2), Some(4), 256 << 10, 0),
        layer(14, None, Some(5), 20 << 30, 0),
    ];
    let maps = [
        (1, map(8 << 30, 0, 0)),
        (2, map(3 << 30, 6 << 30, 1 << 30)),
        (3, map(0, 8 << 30, 0)),
        (4, map(4096, 8 << 30, 4096)),
        (5, map(20 << 30, 0, 20 << 30)),
    ];
    (hierarchies(volumes), layers.into(), maps.into())
}

/// The whole of a small picture, as a person has looked at it.
#[test]
fn a_picture_is_as_it_was_looked_at() {
    let (roots, layers, maps) = scene();
    let svg = draw(&roots, &layers, &maps);
    let kept = include_str!("picture.svg");
    // To keep a picture that has changed, after a look at it: PITSTOP_KEEP_PICTURE=1.
    if svg != kept && std::env::var_os("PITSTOP_KEEP_PICTURE").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/picture.svg"), &svg).unwrap();
    }
    for (number, (line, kept)) in svg.lines().zip(kept.lines()).enumerate() {
        assert_eq!(line, kept, "line {}", number + 1);
    }
    assert_eq!(svg.len(), kept.len());
}

fn texts(svg: &str) -> Vec<String> {
    let text = |part: &str| part.split_once("</text>").unwrap().0.split_once('>').unwrap().1.to_owned();
    svg.split("<text").skip(1).map(text).collect()
}

#[test]
fn a_bar_shows_the_shares_of_the_size() {
    let (roots, layers, maps) = scene();
    let svg = draw(&roots, &layers, &maps);
    for (what, width, tip) in [
        ("class=\"own\" x=\"470\"", 104, "data of its own: 8 GiB, 40 %"),
        ("class=\"own\" x=\"470\"", 39, "data of its own: 3 GiB, 15 %"),
        ("fill=\"url(#others)\" x=\"509\"", 78, "in other volumes&apos; layers: 6 GiB, 30 %"),
        ("fill=\"url(#others)\" x=\"470\"", 104, "in other volumes&apos; layers: 8 GiB, 40 %"),
        ("class=\"own\" x=\"470\"", 3, "data of its own: 4 KiB, &lt;1 %"),
        ("class=\"own\" x=\"470\"", 260, "data of its own: 20 GiB, 100 %"),
        ("class=\"new\" x=\"470\"", 3, "written since it was last copied or refreshed: 4 KiB, &lt;1 %"),
        ("class=\"new\" x=\"470\"", 260, "written since it was last copied or refreshed: 20 GiB, 100 %"),
        ("class=\"zero\" x=\"470\"", 260, "zeros: 0 B, 0 %"),
    ] {
        let is_it = |line: &str| {
            line.contains(what) && line.contains(&format!(" width=\"{width}\" ")) && line.contains(&format!(">{tip}<"))
        };
        assert!(svg.lines().any(is_it), "{what} {width} {tip}");
    }
    assert_eq!(
        [share(0, 9), share(1, u64::MAX), share(u64::MAX - 1, u64::MAX), share(9, 9), share(0, 0)],
        [0, 3, 257, 260, 0]
    );
    assert_eq!([percent(0, 5), percent(1, 1000), percent(999, 1000), percent(5, 5)], ["0 %", "<1 %", "99 %", "100 %"]);
}

#[test]
fn names_of_any_kind_stay_text() {
    let names = [
        "</text><script>alert(1)</script>".to_owned(),
        "a&b<!--".to_owned(),
        "]]>\"'\u{0}\u{1b}[2J\r\n\u{202e}\u{fffe}\u{ffff}\u{85}".to_owned(),
        "x".repeat(5000),
        "界".repeat(127),
    ];
    for name in names {
        let origin = format!("{name}!");
        let volumes = vec![volume(1, &name, None), volume(2, "copy", Some((9, &origin, i64::MIN)))];
        let mut layers = HashMap::from([layer(1, Some(2), None, 4096, 0), layer(2, Some(1), Some(9), 4096, 2)]);
        layers.get_mut(&1).unwrap().kind.clone_from(&name);
        let roots = hierarchies(volumes);
        let svg = Picture { label: &name, lines: &lines(&roots), layers: &layers, maps: &HashMap::new() }.draw();
        assert_is_xml(&svg);
        assert!(!svg.contains("<script") && !svg.contains("<!--"));
        assert!(svg.len() < 12_000, "{}", svg.len());
    }
}

#[test]
fn of_ten_thousand_volumes_the_first_are_drawn_and_the_rest_is_counted() {
    let mut volumes = vec![volume(1, "golden", None), volume(2, "other", None)];
    volumes.extend((3..9003).map(|id| volume(id, &format!("ci-{id}"), Some((1, "golden", INSTANT)))));
    // A copy of a copy of a copy.
    volumes.extend((9003..10_001).map(|id| volume(id, &format!("deep-{id}"), Some((id - 1, "ci", INSTANT)))));
    let roots = hierarchies(volumes);
    let lines = lines(&roots);
    assert_eq!(count(&lines), (MOST_VOLUMES, 10_000 - MOST_VOLUMES));
    let name = |line: &Line<'_>| match line {
        Line::Volume { volume, depth } => Some((volume.name.clone(), *depth)),
        Line::LeftOut { .. } => None,
    };
    let names: Vec<_> = lines.iter().filter_map(name).collect();
    assert_eq!(names[..2], [("golden".to_owned(), 0), ("ci-3".to_owned(), 1)]);
    assert_eq!(*names.last().unwrap(), ("other".to_owned(), 0), "all roots are there");
    let svg = draw(&roots, &HashMap::new(), &HashMap::new());
    assert!(svg.len() < 1 << 20, "{}", svg.len());
    let texts = texts(&svg);
    assert!(texts.contains(&format!("… and {} more volumes, left out", 10_000 - MOST_VOLUMES)), "{texts:?}");
    assert!(texts.iter().any(|text| text.contains("250 volumes drawn, 9750 more left out")));
}

#[test]
fn levels_without_an_end_stay_within_the_picture() {
    let mut volumes = vec![volume(1, "v-1", None)];
    volumes.extend((2..40).map(|id| volume(id, &format!("v-{id}"), Some((id - 1, "v", INSTANT)))));
    let layers: HashMap<_, _> = (1..40).map(|id| layer(id, (id > 1).then(|| id - 1), None, 4096, 1)).collect();
    volumes.iter_mut().for_each(|volume| volume.depth = u32::try_from(volume.id).unwrap() - 1);
    let svg = draw(&hierarchies(volumes), &layers, &HashMap::new());
    let texts = texts(&svg);
    assert!(texts.iter().any(|text| text == "[38] v-39"), "{texts:?}");
    assert!(texts.iter().any(|text| text == "+29"), "{texts:?}");
    let numbers = svg.split(" x=\"").skip(1).map(|part| part.split('"').next().unwrap().parse::<usize>().unwrap());
    assert!(numbers.max().unwrap() < WIDTH);
}

#[test]
fn an_empty_container_is_a_picture_too() {
    let svg = draw(&[], &HashMap::new(), &HashMap::new());
    assert!(texts(&svg).iter().any(|text| text.starts_with("no volumes; make one")));
}
