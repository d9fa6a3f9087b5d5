"""The browser demo: portraits and a driving clip in, a talking head out.

python app.py            # then open http://127.0.0.1:7860
"""

import argparse
import sys

from fsth_hub import FsthError
from fsth_hub.demo import LAUNCH_OPTIONS, create_demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others on your network in")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's servers")
    parser.add_argument(
        "--model", nargs="*", default=[], help="folders or hub ids to choose from; by default the model in the package"
    )
    args = parser.parse_args()
    demo = create_demo(*args.model)
    if args.model:
        try:
            demo.studio.ready.result()
        except FsthError as error:
            sys.exit(f"app.py: error: {error}")
    demo.launch(server_name=args.host, server_port=args.port, share=args.share, **LAUNCH_OPTIONS)


if __name__ == "__main__":
    main()
