"""How many of an audit's duplicates among the emoji are one emoji in another skin tone, by the keys of the shards.

python benchmarks/audit_emoji.py AUDIT SHARD...
"""

import json
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq


def main(folder, shards):
    base = {}
    for shard in shards:
        with tarfile.open(shard) as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    base[Path(member.name).stem] = json.load(archive.extractfile(member))["base_id"]
    groups = Counter(base.values())
    whole = sum(number * (number - 1) // 2 for number in groups.values())
    table = pq.read_table(Path(folder) / "pairs.parquet")
    for kind in ("exact", "near"):
        chosen = table.filter(table[kind])
        names = zip(*(chosen[f"{side}_name"].to_pylist() for side in ("anchor", "candidate")), strict=True)
        pairs = {tuple(sorted(Path(name).stem for name in pair)) for pair in names}
        right = sum(base[one] == base[other] for one, other in pairs)
        print(
            f"{kind}: {len(pairs):,} pairs, {right:,} of one emoji ({right / max(len(pairs), 1):.1%}), of {whole:,} in all"
        )
    images = {name for pair in pairs if base[pair[0]] == base[pair[1]] for name in pair}
    toned = {key for key, emoji in base.items() if groups[emoji] > 1}
    print(f"{len(images & toned):,} of {len(toned):,} pictures with a variant are in a near pair with one")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
