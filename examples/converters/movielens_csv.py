# SPDX-License-Identifier: Apache-2.0
"""MovieLens of the csv generation (20m, 25m, 32m, latest) -> parquet that load_ctr_dataset reads.

    python movielens_csv.py --data_dir ml-25m --output ml-25m.parquet [--tags]
    load_ctr_dataset("ml-25m.parquet", label="rating", label_threshold=3)

Columns: user_id, movie_id, title, genre, tags, rating (0.5 to 5), timestamp. Tags are the ten that most people gave
a movie, the most frequent first; those that the row's user gave it are not counted, since they were written after
watching, and those of others are, whenever they were written.
"""

import argparse
from pathlib import Path

import pandas as pd


def read_movies(data_dir: Path) -> pd.DataFrame:
    movies = pd.read_csv(data_dir / "movies.csv", dtype=str, keep_default_na=False)
    movies["genre"] = movies.pop("genres").str.replace("|", ", ").replace("(no genres listed)", None)
    return movies


def most_frequent(tags: pd.DataFrame) -> list[str] | None:
    """Of a movie's tags, one row per person and tag."""
    return tags["tag"].value_counts(sort=False).sort_values(ascending=False, kind="stable").index[:10].tolist() or None


def add_tags(rows: pd.DataFrame, data_dir: Path) -> pd.DataFrame:
    tags = pd.read_csv(data_dir / "tags.csv", dtype=str, keep_default_na=False)
    tags["tag"] = tags["tag"].str.lower().str.split().str.join(" ")
    tags = tags[tags["tag"] != ""].drop_duplicates(["userId", "movieId", "tag"])
    of_movies = dict(iter(tags.groupby("movieId")))
    lists = {movie: most_frequent(given) for movie, given in of_movies.items()}
    raters = set(zip(tags["userId"], tags["movieId"], strict=True))
    column = []
    for pair in zip(rows["userId"], rows["movieId"], strict=True):
        given = of_movies[pair[1]] if pair in raters else None
        column.append(lists.get(pair[1]) if given is None else most_frequent(given[given["userId"] != pair[0]]))
    return rows.assign(tags=column)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, type=Path, help="Folder with ratings.csv and movies.csv.")
    parser.add_argument("--output", required=True, help="Parquet file to write.")
    parser.add_argument("--tags", action="store_true", help="A list of tags for each row, from tags.csv.")
    arguments = parser.parse_args()
    ratings = pd.read_csv(arguments.data_dir / "ratings.csv", dtype={"userId": str, "movieId": str})
    rows = ratings.merge(read_movies(arguments.data_dir), on="movieId", how="left", validate="many_to_one")
    if arguments.tags:
        rows = add_tags(rows, arguments.data_dir)
    rows = rows.rename(columns={"userId": "user_id", "movieId": "movie_id"})
    names = ["user_id", "movie_id", "title", "genre", *(["tags"] if arguments.tags else []), "rating", "timestamp"]
    rows[names].to_parquet(arguments.output, index=False)
    print(f"{len(rows):,} ratings written to {arguments.output}")


if __name__ == "__main__":
    main()
