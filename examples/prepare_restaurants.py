# SPDX-License-Identifier: Apache-2.0
"""Makes the restaurant table that comes with the package from the raw files of doi:10.24432/C5DP41 (CC BY 4.0).

    python prepare_restaurants.py --raw_dir restaurants --output flip_hf/resources/restaurants.csv

One row per rating, 14 fields and the rating; the fields religion, weight and height, among others, are left out. The
files are separated by commas or semicolons, in UTF-8 or Latin-1: both are in circulation. "?" is missing. Underscores
become spaces, runs of spaces one, and cities lower case; nothing else is normalised ("s.l.p." stays what it is). A
user's or place's cuisines are joined in the order of the files, at most three of them.
"""

import argparse
import csv
from pathlib import Path


USER_FIELDS = ("activity", "budget", "transport", "drink_level", "ambience")


def read_rows(raw_dir: Path, *names: str) -> list[dict[str, str]]:
    raw = next(raw_dir / name for name in names if (raw_dir / name).exists()).read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    lines = text.split("\n")
    return list(csv.DictReader(lines, delimiter=";" if ";" in lines[0] else ","))


def clean(value: str) -> str:
    value = " ".join(value.replace("_", " ").split())
    return "" if value == "?" else value


def read_cuisines(raw_dir: Path, name: str, key: str) -> dict[str, str]:
    groups: dict[str, list[str]] = {}
    for row in read_rows(raw_dir, name):
        groups.setdefault(row[key], []).append(clean(row["Rcuisine"]))
    return {owner: ", ".join(dict.fromkeys(cuisines[:3])) for owner, cuisines in groups.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--raw_dir", required=True, type=Path, help="Folder with rating_final.csv, userprofile.csv, ..."
    )
    parser.add_argument("--output", required=True, help="csv to write.")
    arguments = parser.parse_args()
    raw_dir = arguments.raw_dir
    users = {row["userID"]: row for row in read_rows(raw_dir, "userprofile.csv")}
    places = {row["placeID"]: row for row in read_rows(raw_dir, "geoplaces.csv", "geoplaces2.csv")}
    user_cuisines = read_cuisines(raw_dir, "usercuisine.csv", "userID")
    place_cuisines = read_cuisines(raw_dir, "chefmozcuisine.csv", "placeID")
    rows = []
    for rating in read_rows(raw_dir, "rating_final.csv"):
        user, place = users[rating["userID"]], places[rating["placeID"]]
        rows.append(
            {
                "user_id": rating["userID"],
                **{name: clean(user[name]) for name in USER_FIELDS},
                "favourite_cuisine": user_cuisines.get(rating["userID"], ""),
                "place_id": rating["placeID"],
                "name": clean(place["name"]),
                "city": clean(place["city"]).lower(),
                "cuisine": place_cuisines.get(rating["placeID"], ""),
                "price": clean(place["price"]),
                "dress_code": clean(place["dress_code"]),
                "place_ambience": clean(place["Rambience"]),
                "rating": rating["rating"],
            }
        )
    with open(arguments.output, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows):,} ratings, {len(rows[0]) - 1} fields, written to {arguments.output}")


if __name__ == "__main__":
    main()
