extern int f;
