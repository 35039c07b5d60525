# SPDX-License-Identifier: Apache-2.0
"""Brings a finetuned or pre-trained folder to the Hub: weights, processor, code and model card, in one commit.

    hf auth login
    python push_to_hub.py --folder flip --repo_id user/flip-movielens
    python push_to_hub.py --folder flip --repo_id user/flip-movielens --no-private --title "FLIP on MovieLens-1M"

The token is that of `hf auth login`, or of the variable HF_TOKEN; it is no flag, since flags end up in histories and
logs. Another Hub than the public one is the variable HF_ENDPOINT. The folder's own card is kept unless something is
said of the card here.
"""

import argparse

from flip_hf import push_to_hub


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="Folder with model and processor, as a trainer leaves it.")
    parser.add_argument("--repo_id", required=True, help="user/name; made where it is not there.")
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="A repository that is made now is a private one (default), or one that everybody sees.",
    )
    parser.add_argument("--revision", help="Branch, made where it is not there (default: main).")
    parser.add_argument("--commit_message", help="Of the commit.")
    parser.add_argument("--onnx", action="store_true", help="With what flip_hf.export_onnx wrote into the folder.")
    card = parser.add_argument_group("model card")
    card.add_argument("--title", help="First line.")
    card.add_argument("--dataset_name", help="What the model was trained on.")
    card.add_argument("--label_rule", help="When a label is 1, e.g. 'rating > 3'.")
    card.add_argument("--licenses", help="Of the data and of the language model, as a sentence.")
    card.add_argument("--license", help="The Hub's identifier of the model's licence, e.g. cc-by-4.0.")
    arguments = parser.parse_args()

    names = ("title", "dataset_name", "label_rule", "licenses", "license")
    said = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    url = push_to_hub(
        arguments.folder,
        arguments.repo_id,
        private=arguments.private,
        revision=arguments.revision,
        commit_message=arguments.commit_message,
        onnx=arguments.onnx,
        **said,
    )
    print(url)
    print(f'load it: FlipForCTR.from_pretrained("{arguments.repo_id}"), FlipProcessor.from_pretrained(the same)')


if __name__ == "__main__":
    main()
