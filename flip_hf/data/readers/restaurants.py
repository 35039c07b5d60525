# SPDX-License-Identifier: Apache-2.0
"""Restaurant & consumer data of the UCI repository (Vargas-Govea et al. 2011, doi:10.24432/C5DP41)."""

import csv
from typing import Any

import pyarrow as pa

from .files import PublishedFile
from .lines import ReadingAccount


_RESTAURANT_FIELDS = (
    "user_id",
    "activity",
    "budget",
    "transport",
    "drink_level",
    "ambience",
    "favourite_cuisine",
    "place_id",
    "name",
    "city",
    "cuisine",
    "price",
    "dress_code",
    "place_ambience",
)


def read_embedded_restaurants(account: ReadingAccount, made: PublishedFile) -> pa.Table:
    """The file that `examples/prepare_restaurants.py` made of the UCI files."""
    with made.open_text("utf-8") as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, list[Any]] = {name: [row[name] or None for row in rows] for name in _RESTAURANT_FIELDS}
    return pa.table({**columns, "rating": [int(row["rating"]) for row in rows]})


def read_restaurants(
    account: ReadingAccount,
    ratings: PublishedFile,
    profiles: PublishedFile,
    places_file: PublishedFile,
    cuisines_of_users: PublishedFile,
    cuisines_of_places: PublishedFile,
) -> pa.Table:
    """
    The UCI files, separated by commas or semicolons, in UTF-8 or Latin-1: both are in circulation.

    "?" is missing. Underscores become spaces, runs of spaces one, and cities lower case; nothing else is normalised
    ("s.l.p." stays what it is, and so does a name with a character that was lost before publication). A user's or
    place's cuisines are joined in the order of the files, at most three of them.
    """

    def read(published: PublishedFile) -> list[dict[str, str]]:
        with published.open() as file:
            raw = file.read()
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        lines = text.split("\n")
        return list(csv.DictReader(lines, delimiter=";" if ";" in lines[0] else ","))

    def clean(value: str) -> str | None:
        value = " ".join(value.replace("_", " ").split())
        return None if value in ("?", "") else value

    def grouped(rows: list[dict[str, str]], key: str) -> dict[str, str]:
        groups: dict[str, list[str]] = {}
        for row in rows:
            groups.setdefault(row[key], []).append(clean(row["Rcuisine"]) or "")
        return {owner: ", ".join(dict.fromkeys(values[:3])) for owner, values in groups.items()}

    user_cuisines = grouped(read(cuisines_of_users), "userID")
    place_cuisines = grouped(read(cuisines_of_places), "placeID")
    users = {row["userID"]: row for row in read(profiles)}
    places = {row["placeID"]: row for row in read(places_file)}
    columns: dict[str, list[Any]] = {name: [] for name in (*_RESTAURANT_FIELDS, "rating")}
    for row in read(ratings):
        if row["userID"] not in users or row["placeID"] not in places:
            raise ValueError(
                f"{ratings.name} names user {row['userID']} and place {row['placeID']}, and {profiles.name} or "
                f"{places_file.name} does not have them: is the file whole?"
            )
        user, place = users[row["userID"]], places[row["placeID"]]
        city = clean(place["city"])
        values = {
            "user_id": row["userID"],
            **{name: clean(user[name]) for name in ("activity", "budget", "transport", "drink_level", "ambience")},
            "favourite_cuisine": user_cuisines.get(row["userID"]),
            "place_id": row["placeID"],
            "name": clean(place["name"]),
            "city": city and city.lower(),
            "cuisine": place_cuisines.get(row["placeID"]),
            "price": clean(place["price"]),
            "dress_code": clean(place["dress_code"]),
            "place_ambience": clean(place["Rambience"]),
            "rating": int(row["rating"]),
        }
        for name, column in columns.items():
            column.append(values[name])
    return pa.table(columns)
