"""`python -m timm_stitch VERB`."""

from .cli import main

raise SystemExit(main())
