from ..runs import parse
from . import __doc__, main

if __name__ == "__main__":
    main(parse(__doc__))
