"""`python -m timm_stitch VERB`."""

from .cli.entry import main

raise SystemExit(main())
