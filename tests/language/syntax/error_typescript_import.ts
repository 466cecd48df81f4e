// licence
import { a } from "b"
