"""Publish a trained checkpoint on the Hub with its evaluation, and check that the Hub gives it back.

python examples/06_publish.py CHECKPOINT user/name --evaluation scores/results.json --training-data "…"

Needs a token with write access (`hf auth login`). `zsseg publish` does the same on the command line.
"""

import argparse
import tempfile
from pathlib import Path

from zsseg.publishing.card_facts import CardFacts
from zsseg.publishing.hub_upload import check_download, upload_publication
from zsseg.publishing.publication import build_publication


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("repository", help="user/name; it is made if there is none")
    parser.add_argument(
        "--evaluation", type=Path, nargs="*", default=[], help="results.json of zsseg evaluate"
    )
    parser.add_argument("--license", default="apache-2.0")
    parser.add_argument("--training-data", required=True, help="what the model was trained on, in words")
    parser.add_argument("--public", action="store_true", help="for everybody to see; private without")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        # Every figure of the card comes from these files, and they must be of these very weights.
        publication = build_publication(
            arguments.checkpoint,
            arguments.repository,
            Path(folder),
            facts=CardFacts(license=arguments.license, training_data=arguments.training_data),
            evaluations=arguments.evaluation,
        )
        print("\n".join(publication.files))

        # One commit, all of it or nothing.
        published = upload_publication(publication, arguments.repository, private=not arguments.public)
        print(f"published {published.url}")

        # Downloaded into an empty folder: the same files, and the same outputs to the last bit.
        check_download(publication, published)
        print("the model from the Hub gives the same bits")


if __name__ == "__main__":
    main()
