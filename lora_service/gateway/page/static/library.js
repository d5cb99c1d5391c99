import { user } from "./api.js";

await user();
